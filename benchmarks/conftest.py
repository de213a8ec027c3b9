"""What `pytest benchmarks/` measures, from its options: subjects, sizes, dtypes, threads, ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

import fassd
import fassd_kernels
from fassd.bench import machine
from fassd.bench.candidates import COMPILE, EAGER, FOLDED, NATIVE, TRITON
from fassd.bench.subjects import MODULE_VARIANTS, MODULES, OPERATORS, PICTURES, Case
from fassd.models.device import DTYPES
from fassd.models.sizes import parse_size

PYTORCH = (EAGER, FOLDED, COMPILE)

Size = tuple[int, int]

SIZES: tuple[Size, ...] = ((256, 512), (512, 1024), (1024, 2048))
STRIDE = 32
"""The coarsest map's sides are the picture's divided by this."""

NETWORKS = ("fassd_net", "fassd_net_l1", "fassd_net_l2", "fc_hardnet_70")
"""Networks that are measured without ``--full``."""

COMPILED_NETWORKS = ("fassd_net",)
"""Networks that are compiled without ``--full``: Inductor takes half a minute for each."""


@dataclass(frozen=True)
class Choices:
    """The requested measurements.

    Attributes:
        sizes: sizes of the networks' pictures, (height, width) in pixels.
        dtypes: keys of `DTYPES`.
        threads: numbers of PyTorch's threads, on the CPU.
        device: device for everything.
        full: True measures every network, and compiles all of them.
    """

    sizes: Sequence[Size]
    dtypes: Sequence[str]
    threads: Sequence[int]
    device: torch.device
    full: bool = False

    def cases(self, part: str) -> list[Case]:
        return [
            Case(part, subject, *size, dtype)
            for subject in self.subjects(part)
            for size in self.sizes
            for dtype in self.dtypes
        ]

    def subjects(self, part: str) -> Sequence[str]:
        if part == "operators":
            return (*OPERATORS, *PICTURES)
        if part == "modules":
            return (*MODULES, *MODULE_VARIANTS)
        return fassd.list_models() if self.full else NETWORKS

    def candidates(self, case: Case) -> list[str]:
        """Names of the ways to compute a case: keys of `FORMS`."""
        plain = self.pytorch(case) if pytorch_has_arithmetic(case.dtype, self.device) else []
        return [*plain, *self.backends()]

    def pytorch(self, case: Case) -> list[str]:
        # For bytes there is only one layout, and no batch norm after them.
        names = [EAGER] if case.subject in PICTURES else [EAGER, FOLDED]
        if self.full or case.part != "networks" or case.subject in COMPILED_NETWORKS:
            names.append(COMPILE)
        return names

    def backends(self) -> list[str]:
        """Our backends for the device; one that is not available is skipped, with its reason."""
        names = {self.device.type: NATIVE, "triton": TRITON}
        takes = [b.name for b in fassd_kernels.backends() if b.takes(self.device.type)]
        return [names[name] for name in takes if name in names]


def pytorch_has_arithmetic(dtype: str, device: torch.device) -> bool:
    """True if plain PyTorch in `dtype` is an alternative on `device`.

    If the CPU has no such arithmetic, a convolution takes 150 times as long as in float32 (float16
    on a Zen 5: 2.8 s, not 18 ms).
    """
    if device.type != "cpu" or dtype == "float32":
        return True
    if dtype == "bfloat16":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_fp16_supported()


# --- from the options -----------------------------------------------------------------------------


def one_of(names: Sequence[str], text: str) -> str:
    if text not in names:
        raise ValueError(f"{text!r} is not one of {', '.join(names)}")
    return text


def network_size(text: str) -> Size:
    size = parse_size(text)
    if any(side < 2 * STRIDE or side % STRIDE for side in size):
        raise ValueError(f"{text!r} is not made of multiples of {STRIDE} from {2 * STRIDE}")
    return size


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a whole number from 1")
    return int(text)


AVAILABLE = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
PARSERS: dict[str, Callable[[str], Any]] = {
    "sizes": network_size,
    "dtypes": partial(one_of, tuple(DTYPES)),
    "threads": positive,
    "device": partial(one_of, AVAILABLE),
}
"""For each option, the parser of one value; commas separate several."""


def choices(full: bool = False, **texts: str | None) -> Choices:
    """The measurements that the options request; None is the default, which `full` widens.

    Raises:
        pytest.UsageError: a value is not accepted; the message names it, and the accepted ones.
    """
    given: dict[str, Sequence[Any]] = {}
    for name, text in texts.items():
        try:
            given[name] = [PARSERS[name](part.strip()) for part in text.split(",")] if text else []
        except ValueError as error:
            raise pytest.UsageError(f"--{name}: {error}") from None
    device = torch.device((given.get("device") or AVAILABLE)[0])
    own = torch.get_num_threads()
    # A GPU's timing does not involve the host's threads.
    threads = (own,) if not full or device.type != "cpu" else tuple(sorted({1, own}))
    return Choices(
        given.get("sizes") or (SIZES if full else ((512, 1024),)),
        given.get("dtypes") or (tuple(DTYPES) if full else ("float32",)),
        given.get("threads") or threads,
        device,
        full,
    )


# --- what pytest calls ----------------------------------------------------------------------------

CHOICES = pytest.StashKey[Choices]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fassd benchmarks")
    everything = "every network, size, dtype and thread count, all compiled; takes hours"
    group.addoption("--full", action="store_true", help=everything)
    group.addoption("--sizes", metavar="HxW,..", help="of the networks' pictures; 512x1024")
    group.addoption("--dtypes", metavar="D,..", help=f"of {', '.join(DTYPES)}; float32")
    group.addoption("--threads", metavar="N,..", help="of PyTorch; its own choice")
    group.addoption("--device", help=f"one of {', '.join(AVAILABLE)}; the first")


def pytest_configure(config: pytest.Config) -> None:
    # A run that collects this folder from above does not have the options.
    names = ("full", "sizes", "dtypes", "threads", "device")
    asked = {name: config.getoption(name, None) for name in names}
    config.stash[CHOICES] = choices(**{**asked, "full": bool(asked["full"])})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes ``candidate`` all cases of the part that it is named after."""
    if "candidate" not in metafunc.fixturenames:
        return
    part = metafunc.function.__name__.removeprefix("test_")
    chosen = metafunc.config.stash[CHOICES]
    rows = [
        pytest.param(
            case,
            threads,
            candidate,
            id=f"{case.subject}-{case.height}x{case.width}-{case.dtype}-{threads}-{candidate}",
        )
        for case in chosen.cases(part)
        for threads in chosen.threads
        for candidate in chosen.candidates(case)
    ]
    metafunc.parametrize(("case", "threads", "candidate"), rows)


@pytest.hookimpl(optionalhook=True)  # pytest-benchmark may be missing
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Put the CPU, the versions, the commit and the device into ``--benchmark-json``."""
    device = config.stash[CHOICES].device
    machine_info["fassd"] = machine.environment(device)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return request.config.stash[CHOICES].device


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield
