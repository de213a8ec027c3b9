"""Mistakes planted in copies of csrc/cuda, each of which the tests have to notice.

``python -m ptx.mutations [WORDS]`` from ``tests`` tries those whose name has all the words, or all,
and says of each what was noticed, or that its PTX is that of the sources as they stand. Mistakes in
kernels are shown by calls of operators, so they are tried where the CUDA backend is executed:
README.md says how.
"""

from __future__ import annotations

import functools
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
import torch
from conformance import cases, harness
from ptx import build, executor, test_primitives
from ptx.mistakes import (
    BOXES,
    CONVOLUTION,
    KERNELS,
    PAIR,
    PRIMITIVES,
    STEM,
    UPSAMPLE,
    Mutation,
)

SAME = "the same PTX"
MISSED = "NOT NOTICED"

# Calls that launch a source's kernels, with the variant that is asked for and whether launches are
# fused.
CALLS = {
    CONVOLUTION: [
        ("never", variant, call)
        for variant, call in (
            # One stage, two and three; tap by tap, and sliding.
            ("8,2,5,0", cases.conv_act(1, (31,), 33, (40, 21), stride=(2, 2), dilation=(1, 3))),
            ("4,1,3,0", cases.conv_act(1, (64, 144), 19, (9, 67), kernel=(1, 1), residual=True)),
            ("4,4,3,1", cases.conv_act(1, (40,), 10, (33, 34), pool=2)),
            # Warps that share pixels, each of which takes several steps of a chunk.
            ("8,1,3,0,2", cases.conv_act(1, (40, 24), 24, (18, 21), residual=True)),
            ("8,1,3,0,2", cases.conv_act(1, (40,), 16, (18, 21), dilation=(5, 5))),
            ("12,1,2,1,6", cases.conv_act(1, (80,), 16, (20, 34), activation="relu", pool=2)),
            # What operators are made of: enlarged residuals, prologues, addends, places in a block.
            (
                "4,1,3,0",
                cases.upsample_conv1x1(1, (24,), (20,), 24, (9, 13), (17, 26), activation="relu"),
            ),
            ("8,2,5,0", cases.mda(1, 40, 20, (13, 22))),
            ("4,4,3,1", cases.hardblock(1, 48, (10, 28, 10), (19, 20))),
            ("4,4,3,1", cases.conv_act(2, (18, 16, 33), 70, (37, 45), activation="relu")),
            ("8,2,5,0", cases.conv_act(2, (18, 16, 33), 70, (37, 45), activation="relu")),
        )
    ]
    # Together in one launch: of which one slides, and which have unequal numbers of blocks.
    + [
        ("groups", "8,2,4,1", cases.mda(1, 48, 24, (20, 70))),
        ("groups", "8,2,4,1", cases.dapf(1, 40, 20, 40, (33, 50), (3, 12, 40))),
    ],
    PAIR: [
        ("always", "4,2,4,0", call)
        for call in (
            cases.asymmetric_conv(2, 31, 31, 31, (37, 45), 8, activation="prelu"),
            cases.asymmetric_conv(1, 40, 30, 30, (9, 150), 4),
            cases.dapf(1, 40, 20, 40, (33, 50), (3, 12, 24)),
            cases.mda(1, 24, 20, (13, 22)),
        )
    ],
    STEM: [
        ("", "", cases.conv_act(1, (3,), 24, (37, 45), stride=(2, 2))),
        ("", "", cases.normalize_conv_act(2, 16, (33, 50), stride=(2, 2), activation="relu")),
    ],
    UPSAMPLE: [
        ("", "", cases.upsample(2, 10, (9, 13), (33, 50))),
        ("", "", cases.upsample_argmax(1, 19, (9, 13), (33, 50))),
    ],
}


def padded(tensor: torch.Tensor) -> torch.Tensor:
    """An image whose pixels begin at whole vectors, with NaN behind their channels."""
    if tensor.dim() != 4:
        return tensor
    batch, channels, height, width = tensor.shape
    buffer = harness.poison((batch, height, width, -(-channels // 8) * 8), tensor)
    return buffer[..., :channels].permute(0, 3, 1, 2).copy_(tensor)


# How images lie, copies arrive, and the seed of the order of warps.
RUNS = (("channels_last", "late", 0), ("padded", "random", 3))

# The kernels that those calls ask for. All that there are take minutes to compile.
FEWER = (
    (
        "plan/plan.h",
        "(half_variants.. = )[^;]*",
        r"\1{{8, 2, 5}, {4, 1, 3}, {4, 4, 3, true}, {8, 1, 3, false, 2}, {12, 1, 2, true, 6}}",
    ),
    ("plan/plan.h", "(half_groups.. = )[^;]*", r"\1{{8, 2, 4, true}}"),
    ("plan/plan.h", "(half_pairs.. = )[^;]*", r"\1{{4, pair_m_tiles, 4}}"),
    ("cuda/asymmetric_conv_half.cu", "template[^;]*bfloat16[^;]*;", ""),
)


def compiled(source: str, architecture: int, mistake: Mutation | None = None) -> str:
    """The PTX of a source, of a copy of csrc with a mistake or without."""
    with tempfile.TemporaryDirectory() as folder:
        csrc = shutil.copytree(build.CSRC, Path(folder) / "csrc")
        (csrc.parent / "fassd_kernels").symlink_to(build.ROOT / "fassd_kernels")
        for name, old, new in FEWER:
            path = csrc / name
            path.write_text(re.sub(old, new, path.read_text()))
        if mistake:
            mistake.apply(csrc)
        if source in CALLS:
            return build.ptx_of(csrc / "cuda" / source, architecture, csrc, flags())
        return build.ptx_of(build.HERE / source, architecture, csrc)


@functools.cache
def flags() -> list[str]:
    """What nvcc needs for PyTorch's headers."""
    from torch.utils.cpp_extension import include_paths

    includes = [f"-isystem={path}" for path in (*include_paths(), sysconfig.get_path("include"))]
    return [*includes, "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={build.TORCH_TARGET}"]


# What names of kernels in a namespace without a name owe to the place of their source.
PLACE = r"_GLOBAL__N__[0-9a-f]{8}_(\d+_\w+?_cu)_[0-9a-f]{8}"


@functools.cache
def places() -> dict[str, str]:
    from ptx import host

    texts = [path.read_text() for path in host.library().parent.glob("*.ptx")]
    return {found[1]: found[0] for text in texts for found in re.finditer(PLACE, text)}


def load(source: str, ptx: str) -> None:
    """Put kernels into the place of those that the backend was built with."""
    renamed = re.sub(PLACE, lambda found: places()[found[1]], ptx)
    executor.load(f"{source}.ptx", renamed)


def code(ptx: str) -> list[str]:
    """PTX without comments and places."""
    lines = re.sub(PLACE, r"\1", ptx).splitlines()
    return [line for line in lines if not line.lstrip().startswith("//")]


def primitives_say(architecture: int) -> str:
    for name, test in vars(test_primitives).items():
        if name.startswith("test_"):
            try:
                test(architecture)
            except (AssertionError, executor.Fault, pytest.fail.Exception) as error:
                return f"{name}: {str(error).strip().partition(chr(10))[0]}"
    return MISSED


def calls_say(source: str, architecture: int) -> str:
    """What is said of calls that launch the kernels of a source."""
    for fusion, variant, call in CALLS[source]:
        subject = harness.Subject(call.operator, harness.targets(["cuda"], ["cpu"])[0])
        for layout, arrival, seed in RUNS:
            capability = {80: 86}.get(architecture, architecture)
            settings = executor.settings(
                capability=capability, races=True, arrival=arrival, seed=seed
            )
            with pytest.MonkeyPatch.context() as patch, settings:
                patch.setenv("FASSD_KERNELS_CUDA_FUSION", fusion)
                patch.setenv("FASSD_KERNELS_CUDA_VARIANT", variant)
                patch.setitem(harness.LAYOUTS, "padded", padded)
                # Of a picture, pixels that lie side by side.
                layout = "contiguous" if "image" in call.arguments else layout
                try:
                    harness.check(subject, call, torch.float16, layout)
                except (AssertionError, RuntimeError) as error:
                    return f"{call.operator}: {str(error).strip().partition(chr(10))[0]}"
    return MISSED


def said_of(source: str, architecture: int) -> str:
    return calls_say(source, architecture) if source in CALLS else primitives_say(architecture)


@functools.cache
def as_it_stands(source: str, architecture: int) -> str:
    """The PTX of a source without a mistake, of which nothing is said."""
    ptx = compiled(source, architecture)
    load(source, ptx)
    assert said_of(source, architecture) == MISSED
    return ptx


def noticed(mutation: Mutation) -> str:
    """What the tests of the primitives, or calls of operators, say of a mistake."""
    source, architecture = mutation.source, mutation.architecture
    ptx, right = compiled(source, architecture, mutation), as_it_stands(source, architecture)
    if code(ptx) == code(right):
        return SAME
    load(source, ptx)
    try:
        return said_of(source, architecture)
    finally:
        load(source, right)


def tried() -> list[Mutation]:
    """Those that the executed GPU shows: of a 9.0 what the engine copies, of others all else."""
    if not harness.EXECUTED:
        return PRIMITIVES
    return BOXES if executor.DEFAULTS["capability"] >= 90 else [*PRIMITIVES, *KERNELS]


def main() -> None:
    asked = [m for m in tried() if all(word in str(m) for word in sys.argv[1:])]
    missed = 0
    for mutation in asked:
        said = noticed(mutation)
        missed += said == MISSED
        print(f"{mutation}\n    {said}", flush=True)
    print(f"{len(asked) - missed} of {len(asked)} are noticed, or change no instruction")
    if not harness.EXECUTED:
        print(f"{len(KERNELS) + len(BOXES)} in kernels were left out: PTX_SETTINGS is not set")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
