"""Sizes up to 2^62: a call computes what it was asked for or raises, and touches nothing else.

Tensors of such sizes take no memory: all their elements, or those along some axes, are one.
"""

from __future__ import annotations

import inspect
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conformance import cases
from conformance.harness import Call
from torch import Tensor

from fassd_kernels import ops
from fassd_kernels.checks import ACTIVATIONS
from fassd_kernels.reference.conv_act import KERNELS

HELD = 4096  # elements that a tensor's storage has
VALUE = 0.0625  # all of them: sums of products stay within float16
# Calls that reach between these many elements somewhere are passed over: they fit into the memory
# of some machine, which would be busy for minutes.
FEW, TOO_MANY = 2**20, 2**42

STEPS = (1, 2, 3, 5, 2**31 - 1)
SETTINGS: dict[str, tuple[Any, ...]] = {
    "kernel": KERNELS,
    "padding": ((0, 0), (1, 1), (0, 1)),
    "stride": tuple((a, b) for a in STEPS for b in STEPS),
    "dilations": ((1, 2), (2**31 - 1, 3), (1, 1, 1)),
    "activation": ACTIVATIONS,
    "bias": (True, False),
    "residual": (True, False),
    "pool": (1, 2),
    "align_corners": (True, False),
    "side": (1, 3, 5, 7),
    "groups": (0, 0, 1, 2, 2**40),
    "multiple": (1, 1, 2),
    "mean": (cases.MEAN,),
    "std": (cases.STD,),
}
SEVERAL = {"channels": 3, "low": 2, "skip": 2, "widths": 5}


class Draw(cases.Source):
    """Random sizes, and tensors of any: in place of the random numbers of small ones."""

    def __init__(self, seed: int, dtype: torch.dtype, device: str) -> None:
        super().__init__(seed)
        self.random = random.Random(seed)
        self.dtype, self.device = dtype, device

    def size(self) -> int:
        if self.random.random() < 0.75:
            return self.random.choice((0, 1, 1, 2, 3, 4, 5, 7))
        return 2 ** self.random.randint(20, 62) + self.random.choice((-1, 0, 0, 1, 7))

    def setting(self, name: str, parameter: inspect.Parameter) -> Any:
        """A value of a builder's argument."""
        if name == "dilation":
            pair = isinstance(parameter.default, tuple)
            return self.random.choice(SETTINGS["stride"] if pair else STEPS)
        if name in SETTINGS:
            return self.random.choice(SETTINGS[name])
        if name in ("size", "low_size"):
            return self.size(), self.size()
        if name in SEVERAL and isinstance(parameter.default, tuple):
            return tuple(self.size() for _ in range(self.random.randint(1, SEVERAL[name])))
        return self.size()

    def call(self, operator: str) -> Call:
        builder: Callable[..., Call] = cases.builder(operator)
        parameters = inspect.signature(builder).parameters.items()
        call = builder(**{name: self.setting(name, value) for name, value in parameters})
        return call.with_(dtype=self.dtype) if "dtype" in call.arguments else call

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        def stride(size: int) -> int:
            if size == 1:
                return self.random.choice((0, 1, 2**40 + 1, 2**62))
            return self.random.choice((0, 1, size, 64)) if size < 10 else 0

        value = VALUE if dtype.is_floating_point else 1
        held = torch.full((HELD,), value, dtype=dtype, device=self.device)
        return held.as_strided(shape, [stride(size) for size in shape])

    def image(self, batch: int, channels: int, size: cases.Pair) -> Tensor:
        return self.tensor((batch, channels, *size), self.dtype)

    def weight(self, out_channels: int, in_channels: int, kernel: cases.Pair = (1, 1)) -> Tensor:
        return self.tensor((out_channels, in_channels, *kernel), self.dtype)

    def vector(self, channels: int, mean: float = 0.0) -> Tensor:
        return self.tensor((channels,), self.dtype)

    def picture(self, batch: int, size: cases.Pair) -> Tensor:
        return self.tensor((batch, *size, 3), torch.uint8)


def extents(call: Call) -> Iterator[int]:
    """Numbers of elements that a call reads, writes, or may hold in between."""
    images = [x for x in call.tensors if x.dim() == 4]
    pixels = [x.shape[0] * x.shape[2] * x.shape[3] for x in images]
    for tensor in call.tensors:
        yield tensor.numel()
    for image in images:
        yield from (n * side for n in pixels for side in image.shape[:2])
        yield from (
            batch * image.shape[1] * math.prod(call.arguments.get("size", (1,)))
            for batch in (1, image.shape[0])
        )
    yield from call.arguments.get("size", ())


def drawn_calls(
    monkeypatch: pytest.MonkeyPatch, operator: str, dtypes: Any, device: str, seconds: float
) -> Iterator[tuple[int, Draw, Call]]:
    end, seed = time.monotonic() + seconds, 0
    while time.monotonic() < end or seed < 20:
        seed += 1
        draw = Draw(seed, dtypes[seed % len(dtypes)], device)
        monkeypatch.setattr(cases, "Source", lambda draw=draw: draw)
        try:
            call = draw.call(operator)
        except (RuntimeError, TypeError):
            continue  # no tensor has that many elements
        if not any(FEW < extent < TOO_MANY for extent in extents(call)):
            yield seed, draw, call


def shape_of(call: Call) -> tuple[int, ...] | None:
    """The shape of a call's result; None where the call is to be refused."""
    try:
        return tuple(call.row.check(**call.arguments))
    except RuntimeError:
        return None


def test_any_sizes(subject, monkeypatch, request):
    """Of each call that is drawn; and where a tensor's storage was shrunk, an error."""
    seconds = request.config.getoption("fuzz", None) or 0.2
    bystanders = [ops.upsample(torch.ones(1, 4, 8, 8), [80, 80]) for _ in range(3)]
    before = [bystander.clone() for bystander in bystanders]
    del bystanders[1], before[1]  # a hole between two results, which the next one takes
    for seed, draw, call in drawn_calls(
        monkeypatch, subject.operator, subject.dtypes, subject.device, seconds
    ):
        shape = shape_of(call)
        shrunk = seed % 8 == 0 and [tensor for tensor in call.tensors if tensor.numel() > 0]
        if shrunk:
            storage = draw.random.choice(shrunk).untyped_storage()
            storage.resize_(0)
        try:
            result = subject(call)
        except RuntimeError:
            continue
        assert shape == tuple(result.shape), seed
        assert not shrunk, seed
        if not result.numel():
            continue  # PyTorch itself cannot work on all empty shapes
        if subject.operator == "upsample":
            assert ((result - VALUE).abs() < 0.01).all(), seed
        elif result.is_floating_point():
            assert result.isfinite().all(), seed
    assert all(map(torch.equal, bystanders, before))


def test_plans_of_any_numbers():
    """Plans for GPUs that are not there are asked for by numbers, which may be any."""
    draw = random.Random(0)
    planned = 0
    for _ in range(1000):

        def number() -> int:
            likely = draw.random() < 0.97
            return draw.choice((1, 1, 2, 3) if likely else (0, 2**30, 2**31, 2**40))

        gpu = [132, 232448, 90] if draw.random() < 0.8 else [number(), number(), number()]
        dtype = draw.choice((torch.float32, torch.float16))

        def empty(*sides: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(sides, dtype=dtype, device="meta")

        plan = torch.ops.fassd_kernels_plan
        try:
            image = empty(number(), number(), number(), number())
            if draw.random() < 0.5:
                weight = empty(number(), image.shape[1], *draw.choice(((1, 1), (3, 3))))
                steps = [number(), number()]
                answer = plan.conv_act([image], weight, stride=steps, gpu=gpu)
            else:
                first = empty(number(), image.shape[1], 3, 1)
                second = empty(number(), first.shape[0], 1, 3)
                answer = plan.asymmetric_conv(image, first, second, dilation=number(), gpu=gpu)
        except RuntimeError as error:
            said = ("expected", "memory", "at most", "channels", "overflow", "numel")
            assert any(word in str(error) for word in said), error
            continue
        planned += 1
        for launch in json.loads(answer):
            assert all(value >= 0 for blocks in launch["blocks"] for value in blocks.values())
    assert planned > 20
