"""Every line of every kernel is reached in the interpreter: masks, skips, boundaries, epilogues.

It checks every integer sum for overflow here, which the other tests turn off.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from conformance import cases
from conformance.harness import IMAGES, LAYOUTS, Call, check_result
from triton_backend.conftest import CALLS, check_tf32, interpreted, padded, run, with_config
from triton_backend.test_interpreted import far_apart

import fassd_kernels.triton
from fassd_kernels.checks import ACTIVATIONS
from fassd_kernels.triton.configurations import CANDIDATES, Config

pytestmark = interpreted

FOLDER = Path(fassd_kernels.triton.__file__).parent
FAR = 2**31


def kernels() -> Iterator[tuple[str, str, set[int]]]:
    """File, name, and first lines of the statements of every function that Triton compiles."""
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and "triton.jit" in map(
                lambda d: ast.unparse(d).partition("(")[0], node.decorator_list
            ):
                lines = {
                    statement.lineno
                    for statement in ast.walk(node)
                    if isinstance(statement, ast.stmt) and statement is not node
                }
                docstring = node.body[0]
                if isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant):
                    lines.discard(docstring.lineno)
                yield path.name, node.name, lines


class Lines:
    """Lines of kernels that run while it is on."""

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self.seen: defaultdict[str, set[int]] = defaultdict(set)

    def __enter__(self) -> Lines:
        sys.settrace(self.call)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)

    def call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self.line if frame.f_code.co_name in self.names else None

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.seen[frame.f_code.co_name].add(frame.f_lineno)
        return self.line


def far(call: Call, name: str) -> Call:
    """The call with pictures further apart than 32 bits can tell."""
    image = call.arguments[name]
    many = isinstance(image, list)
    first = image[0] if many else image
    moved = far_apart(tuple(first.shape), FAR, first.dtype).copy_(first)
    return call.with_(**{name: [moved] if many else moved})


def picture_far_apart() -> Call:
    call = cases.normalize(2, (3, 4))
    image = call.arguments["image"]
    buffer = torch.empty(FAR + 36, dtype=torch.uint8)
    return call.with_(image=buffer.as_strided(image.shape, (FAR, 12, 3, 1)).copy_(image))


def all_sorts() -> list[Call]:
    half = torch.float16
    several = [*CALLS["spatial"], *CALLS["pointwise"][:2]]  # the third is an mda as well
    seen = {call.operator for call in several}
    return [
        *(call.to(half) for call in several),
        *(calls[0].to(half) for name, calls in cases.SAMPLES.items() if name not in seen),
        *(
            cases.conv_act(1, (4,), 5, (3, 4), (1, 1), activation=name).to(half)
            for name in ACTIVATIONS
        ),
        cases.conv_act(1, (700,), 3, (2, 3)).to(torch.float32),  # summed in parts
        cases.conv_act(1, (4,), 5, (9, 12), (3, 3), (1, 1), (4, 4)).to(half),  # taps skipped
        cases.conv_act(1, (9, 4), 5, (6, 7)).to(half).map(LAYOUTS["sliced_channels_last"]),
        cases.conv_act(1, (9,), 5, (6, 7)).to(half).map(padded, IMAGES),
        cases.asymmetric_conv(1, 9, 5, 6, (6, 7), 2).to(half).map(padded, IMAGES),
        cases.asymmetric_conv(1, 9, 5, 6, (6, 7), 2).to(half).map(LAYOUTS["sliced_channels_last"]),
        far(cases.conv_act(2, (8,), 5, (3, 5), residual=True).to(half), "inputs"),
        *(
            far(getattr(cases, name)(batch=2, channels=8).to(half), "input")
            for name in (
                *("upsample", "upsample_argmax", "upsample_confidence"),
                *("asymmetric_conv", "aspp", "max_pool"),
            )
        ),
        far(cases.grouped_conv_act(2, 8, 8, residual=True, activation="prelu").to(half), "input"),
        cases.upsample(align_corners=False).to(half),
        *(
            cases.upsample_confidence(channels=5, measure=name).to(half)
            for name in ("probability", "entropy")
        ),
        picture_far_apart().to(half),
    ]


def test_every_line_of_every_kernel():
    everything = list(kernels())
    assert len(everything) > 12
    names = [name for _, name, _ in everything]
    assert len(set(names)) == len(names), "two kernels of one name"
    with Lines(set(names)) as lines:
        for call in all_sorts():
            check_result(call, run(call))
        for config in (CANDIDATES["asymmetric", True][-1], Config(64, 32, 16, block_middle=16)):
            call = cases.asymmetric_conv(1, 5, 6, 7, (2, 150), 2, "prelu").to(torch.float16)
            check_result(call, with_config(call, config, "asymmetric"))
        check_tf32()
    missed = {
        f"{file}:{name}": sorted(expected - lines.seen[name])
        for file, name, expected in everything
        if expected - lines.seen[name]
    }
    assert not missed
