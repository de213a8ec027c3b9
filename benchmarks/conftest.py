"""What `pytest benchmarks/` measures, from its options: subjects, sizes, dtypes, threads, ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import fassd
import fassd_kernels
from fassd.bench import machine
from fassd.bench.candidates import COMPILE, EAGER, FOLDED, NATIVE, PYTHON, TRITON
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
        full: True measures every network, compiles all of them, and also times ours in Python.
    """

    sizes: tuple[Size, ...]
    dtypes: tuple[str, ...]
    threads: tuple[int, ...]
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
        if self.full:
            names[PYTHON] = PYTHON
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


def network_size(text: str) -> Size:
    size = parse_size(text)
    if any(side < 2 * STRIDE or side % STRIDE for side in size):
        raise ValueError
    return size


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError
    return int(text)


LISTS: dict[str, tuple[Callable[[str], Any], str]] = {
    "sizes": (
        network_size,
        f"is HEIGHTxWIDTH, comma between, of multiples of {STRIDE} from {2 * STRIDE}, as in "
        "512x1024,1024x2048",
    ),
    "dtypes": ({name: name for name in DTYPES}.__getitem__, f"are {', '.join(DTYPES)}"),
    "threads": (positive, "are whole numbers from 1, comma between, as in 1,2"),
}
"""Options with commas: the parser of one value, and the accepted values in words."""


def choices(full: bool = False, device: str | None = None, **lists: str | None) -> Choices:
    """The measurements that the options request; None is the default, which `full` widens.

    Raises:
        pytest.UsageError: a value is not accepted; the message names it, and the accepted ones.
    """
    place = parse_device(device)
    chosen = Choices(((512, 1024),), ("float32",), (torch.get_num_threads(),), place, full)
    if full:
        chosen = replace(chosen, sizes=SIZES, dtypes=tuple(DTYPES))
    if full and place.type == "cpu":  # a GPU's timing does not involve the host's threads
        chosen = replace(chosen, threads=tuple(sorted({1, torch.get_num_threads()})))
    given = {name: parsed(name, texts) for name, texts in lists.items() if texts is not None}
    return replace(chosen, **given)


def parsed(name: str, texts: str) -> tuple[Any, ...]:
    parse, accepted = LISTS[name]
    values = []
    for text in texts.split(","):
        try:
            values.append(parse(text.strip()))
        except (ValueError, KeyError):
            raise pytest.UsageError(f"--{name}: got {text!r}, accepted {accepted}") from None
    return tuple(values)


def parse_device(text: str | None) -> torch.device:
    """The GPU, if there is one, unless the option says otherwise."""
    available = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if text is None:
        return torch.device(available[-1])
    if text not in available:
        raise pytest.UsageError(f"--device: got {text!r}, accepted here: {', '.join(available)}")
    return torch.device(text)


# --- what pytest calls ----------------------------------------------------------------------------

CHOICES = pytest.StashKey[Choices]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fassd benchmarks")
    group.addoption(
        "--full",
        action="store_true",
        help="every network, size, dtype and thread count, all compiled; takes hours",
    )
    group.addoption(
        "--sizes",
        metavar="HxW,..",
        help="of the networks' pictures (default: 512x1024; full: half and double, too)",
    )
    group.addoption("--dtypes", metavar="D,..", help="float32 (the default), float16, bfloat16")
    group.addoption(
        "--threads", metavar="N,..", help="of PyTorch (default: its own choice; full: 1, too)"
    )
    group.addoption("--device", help="cpu or cuda (default: cuda where there is a GPU)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timeout(seconds): of pytest-timeout, where it is there")
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
