"""Every configuration that can be picked, compiled for every architecture and taken apart.

No GPU is needed. What is compiled are the launches that ask most of a configuration: four inputs
with a copy, prologues, cleared lanes, enlarged residuals, several branches.

All that takes ten minutes, which ``FASSD_TEST_ARCHITECTURES=all`` asks for. Otherwise sm_86 and
sm_89, which multiply as sm_80 does, and bfloat16, which takes what float16 does, are left out, and
each row takes every second of its launches, beginning with the first or the second in turn, so that
a configuration meets every architecture, and a launch every configuration and every architecture.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from triton_backend.conftest import allowing_tf32, compiled

from fassd.bench.costs.triton import plan_network
from fassd_kernels.triton.configurations import (
    CANDIDATES,
    NARROW,
    Config,
    fit,
    is_usable,
    overriding,
    table_for,
)
from fassd_kernels.triton.device import KNOWN, Device, assuming, device_named
from fassd_kernels.triton.layout import empty_image
from fassd_kernels.triton.program import Launch, Program, fill, recording

pytestmark = compiled

# One GPU of each architecture; the float types that are compiled for it.
ALL = os.environ.get("FASSD_TEST_ARCHITECTURES") == "all"
LEFT_OUT = () if ALL else ("86", "89")
ARCHITECTURES = {
    str(device.arch): device for device in reversed(KNOWN) if str(device.arch) not in LEFT_OUT
}
HALVES = (torch.float16,)
HALF = {"90": (torch.float16, torch.bfloat16)} if ALL else {}


def image(channels: int, dtype: torch.dtype, narrow: bool, height: int = 32) -> Tensor:
    """A picture 192 wide, padded as our own are, or with addresses that allow no vectors."""
    tensor = empty_image((1, channels, height, 192), dtype, "cpu", padded=True)
    return empty_image((1, channels, height, 192), dtype, "cpu", padded=False) if narrow else tensor


def vectors(*sizes: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.empty(n, dtype=dtype) for n in sizes]


def hardblock(dtype: torch.dtype, narrow: bool) -> None:
    from fassd_kernels.triton.hardblock import hardblock

    widths, channels = (18, 30, 18, 52), 63
    inputs = (channels, channels + 18, 30, channels + 30 + 18)
    weights = [torch.empty(o, i, 3, 3, dtype=dtype) for o, i in zip(widths, inputs, strict=True)]
    biases = vectors(*widths, dtype=dtype)
    hardblock(image(channels, dtype, narrow), weights, biases, padded=True)


def mda(dtype: torch.dtype, narrow: bool) -> None:
    from fassd_kernels.triton.mda import mda

    channels, width = 119, 59
    shapes = [(channels, 3, 3), (width, 3, 3), (width, 3, 1), (width, 1, 3)]
    weights = [torch.empty(width, *shape, dtype=dtype) for shape in shapes]
    weights.append(torch.empty(channels, width, 1, 1, dtype=dtype))
    each = (channels, *[width] * 5)
    mda(
        image(channels, dtype, narrow), weights, vectors(channels, width, dtype=dtype),
        vectors(*each, dtype=dtype), vectors(*each, dtype=dtype), dilation=4, padded=True,
    )  # fmt: skip


def dapf(dtype: torch.dtype, narrow: bool) -> None:
    from fassd_kernels.triton.dapf import dapf

    channels, width = 213, 112
    weights = [torch.empty(width, channels, 1, 1, dtype=dtype)]
    for _ in range(3):
        weights.append(torch.empty(width, channels, 3, 1, dtype=dtype))
        weights.append(torch.empty(width, width, 1, 3, dtype=dtype))
    weights.append(torch.empty(channels, 4 * width, 1, 1, dtype=dtype))
    biases = vectors(*[width] * 7, channels, dtype=dtype)
    dapf(image(channels, dtype, narrow), weights, biases, dilations=(12, 24, 36), padded=True)


def upsample_conv1x1(dtype: torch.dtype, narrow: bool) -> None:
    from fassd_kernels.triton.upsample_conv1x1 import upsample_conv1x1

    weight, bias = torch.empty(63, 126, 1, 1, dtype=dtype), torch.empty(63, dtype=dtype)
    low, skip = image(79, dtype, narrow, height=16), image(47, dtype, narrow)
    upsample_conv1x1([low], [skip], weight, bias, activation="relu", padded=True)


def pooled(dtype: torch.dtype, narrow: bool) -> None:
    from fassd_kernels.triton.conv_act import conv_act

    weight, bias = torch.empty(96, 79, 1, 1, dtype=dtype), torch.empty(96, dtype=dtype)
    conv_act([image(79, dtype, narrow)], weight, bias, activation="relu", pool=2, padded=True)


# Calls, and which of their launches ask most of a family's configurations.
DEMANDING: dict[str, dict[Callable[[torch.dtype, bool], None], str]] = {
    "spatial": {hardblock: "hardblock 4", mda: "mda reduce"},
    "pointwise": {mda: "mda tail", upsample_conv1x1: "upsample_conv1x1 skip", pooled: "conv"},
    "asymmetric": {mda: "mda asymmetric", dapf: "dapf branches"},
}


def launches_with(
    config: Config, family: str, dtype: torch.dtype, device: Device, narrow: bool
) -> list[tuple[Program, Launch]]:
    """The demanding launches of a family, cut as `config` says."""
    found = []
    for call, label in DEMANDING[family].items():
        with assuming(device), recording() as programs:
            call(dtype, narrow)
        problem = launch_named(programs[0], label).problem
        assert problem
        if problem.narrow == narrow and is_usable(config, problem):
            forced = {problem.key: fit(config, problem, device)}
            with assuming(device), recording() as programs, overriding(forced):
                call(dtype, narrow)
            found.append((programs[0], launch_named(programs[0], label)))
    assert found
    return found


def launch_named(program: Program, label: str) -> Launch:
    return next(launch for launch in program.launches if launch.label == label)


def rows() -> list[tuple[str, str, torch.dtype, Config, bool, int]]:
    """Architecture, family, type, configuration, whether for narrow loads, whose launch's turn."""
    rows = []
    for number, (arch, device) in enumerate(ARCHITECTURES.items()):
        for (family, half), dtype in product(CANDIDATES, (*HALF.get(arch, HALVES), torch.float32)):
            if half == (dtype != torch.float32):
                configs = [(config, False) for config in table_for(family, half, device)]
                configs.append((NARROW[family, half], True))
                turns = enumerate(configs, number)
                rows += [(arch, family, dtype, *config, turn) for turn, config in turns]
    return rows


def name_of(value: object) -> str:
    if isinstance(value, Config):
        shape = f"{value.block_m}x{value.block_n}x{value.block_k}"
        return f"{shape}{'-recompute' if value.recompute else ''}"
    if isinstance(value, bool):
        return "narrow" if value else "wide"
    return str(value).removeprefix("torch.")


@pytest.mark.parametrize("classes", [2, 19, 150, 256])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_labels_of_many_classes(arch, classes):
    from fassd_kernels.triton.aot import examine, source_of
    from fassd_kernels.triton.upsample import upsample_argmax

    device = ARCHITECTURES[arch]
    with assuming(device), recording() as programs:
        upsample_argmax(image(classes, torch.float16, narrow=False), (64, 384))
    found = examine(source_of(programs[0], programs[0].launches[0]), device)
    assert found.spills == 0, found


def test_sources_are_those_of_the_jit(monkeypatch):
    """What is compiled here is what a GPU would run: the JIT, asked with a pretended driver."""
    import triton
    from ptx.triton import Driver
    from triton.compiler import ASTSource
    from triton.runtime import JITFunction, driver

    seen = []
    device = device_named("H200")
    monkeypatch.setattr(driver, "_active", Driver(device))
    # Where nothing that another test compiled is kept.
    monkeypatch.setattr(Driver, "get_current_device", lambda self: "pretended")
    monkeypatch.setattr(JITFunction, "_do_compile", lambda *arguments: seen.append(arguments))
    for name, output in (("fassd_net", "labels"), ("baseline_aspp_mda", "logits")):
        for planned in plan_network(name, 320, 96, device, output=output):
            launch, source = planned.launch, planned.source
            tensors = planned.program.fill(planned.program.inputs)
            values = [fill(value, tensors) for value in launch.arguments.values()]
            launch.kernel.warmup(*values, grid=launch.grid, **launch.options)
            _, _, types, _, constants, _, attributes, _ = seen.pop()
            assert (source.types, source.constants) == (types, constants), launch.label
            given = [source.attributes, attributes]
            ours, theirs = ({k: v for k, v in each.items() if v} for each in given)
            assert ours == theirs, launch.label
            if triton.__version__.startswith("3.6"):  # names arguments without attributes otherwise
                continue
            hashes = {ASTSource(launch.kernel, types, constants, each).hash() for each in given}
            assert len(hashes) == 1, launch.label


@pytest.mark.parametrize("row", rows(), ids=lambda row: "-".join(map(name_of, row[:5])))
def test_configuration(row):
    from fassd_kernels.triton.aot import examine_all, source_of

    arch, family, dtype, config, narrow, turn = row
    device = ARCHITECTURES[arch]
    whole = ALL or arch == "75"  # whose configurations are its own: no other takes what it leaves
    sources = {}
    for allowed in [False, True] if ALL and dtype == torch.float32 else [False]:
        with allowing_tf32(allowed):
            demanding = launches_with(config, family, dtype, device, narrow)
            if not whole:
                demanding = demanding[turn % 2 :: 2] or demanding
            for program, launch in demanding:
                source = source_of(program, launch)
                sources[source.identity] = (launch, source)
    found = examine_all([source for _, source in sources.values()], device)
    for key, resources in found.items():
        launch = sources[key][0]
        tf32 = launch.arguments["PRECISION"] == "tf32"
        what = f"{launch.label} {launch.options} {tf32 and 'tf32'}: {resources}"
        # To have more warps at once, ptxas spills two registers of one narrow kernel in TF32.
        assert resources.spills <= (8 if narrow and tf32 else 0), what
        assert 0 < resources.registers <= (512 if device.backend == "hip" else 255), what
        assert resources.shared <= device.shared, what
        if tf32 or (dtype.itemsize == 2 and arch != "75"):
            assert resources.tensor_cores > 0, what
            # 16 bytes at a time, from images whose pixels are whole vectors apart. (AMD's blocks
            # have twice the threads: each is left with 8 bytes.)
            assert narrow or device.backend == "hip" or resources.wide_loads > 0, what
