"""Calls of fused operators: recorded from a network, to be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fassd.models import create_model
from fassd_kernels import ops
from fassd_kernels.accelerate import accelerate
from fassd_kernels.choices import shape_key
from fassd_kernels.modules.network import Output
from fassd_kernels.operators import OPERATORS, Operator
from fassd_kernels.triton.program import Launch, Program, recording
from fassd_kernels.tuning.accuracy import exactly


@dataclass(frozen=True)
class OperatorCall:
    """A call of an operator.

    Attributes:
        operator: name of the operator.
        arguments: arguments by name, without those left out.
    """

    operator: str
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, operator: str, *arguments: Any, **keywords: Any) -> OperatorCall:
        return cls(operator, OPERATORS[operator].bind(arguments, keywords))

    @property
    def row(self) -> Operator:
        return OPERATORS[self.operator]

    @property
    def complete(self) -> dict[str, Any]:
        """The arguments, with the defaults of options that were left out."""
        return {**dict(self.row.options), **self.arguments}

    @property
    def images(self) -> list[Tensor]:
        """Its images, except a residual."""
        return [image for name in self.row.images for image in as_list(self.arguments[name])]

    @property
    def key(self) -> str:
        """The key of a table of backends: everything that the call's speed depends on."""
        return shape_key(self.operator, self.images, self.arguments)

    def through(self, backend: str, **packed: Any) -> Tensor:
        """Make the call on a backend.

        Args:
            backend: name of a backend that can run it.
            packed: argument ``packed``, if the layout of the weights is to differ from when the
                call was recorded.
        """
        return ops.operator(self.operator, backend)(**{**self.arguments, **packed})

    def exact(self) -> Tensor:
        """The reference's result in float64."""
        arguments = {**self.arguments, "packed": None} if self.packs else self.arguments
        return self.row.reference(**{name: exactly(value) for name, value in arguments.items()})

    @property
    def packs(self) -> bool:
        """True if it takes weights in a backend's layout."""
        return "packed" in self.row.names

    def copied(self) -> OperatorCall:
        """The same call on copies of its images."""
        arguments = dict(self.arguments)
        for name in self.row.images:
            images = [copy_of(image) for image in as_list(arguments[name])]
            arguments[name] = images if isinstance(arguments[name], list | tuple) else images[0]
        return OperatorCall(self.operator, arguments)


def as_list(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, list | tuple) else [value]


def copy_of(image: Tensor) -> Tensor:
    """A copy with the same strides and the same space after each pixel, which `clone` would drop.

    Images between the kernels of a network are padded, and their kernels read the padding.
    """
    room = image.untyped_storage().nbytes() // image.element_size()
    everything = image.as_strided((room,), (1,), 0).clone()
    return everything.as_strided(image.shape, image.stride(), image.storage_offset())


# --- recording ------------------------------------------------------------------------------------


@contextmanager
def around_operators(around: Callable[[str, partial[Tensor]], Tensor]) -> Iterator[None]:
    """Let fused modules call ``around`` with an operator's name and a call to make."""
    real = ops.operator

    # Every fused module gets its kernel from this function, on each call.
    def operator(name: str, backend: str) -> Callable[..., Tensor]:
        function = real(name, backend)
        return lambda *arguments, **keywords: around(
            name, partial(function, *arguments, **keywords)
        )

    ops.operator = operator
    try:
        yield
    finally:
        ops.operator = real


@contextmanager
def recorded_calls() -> Iterator[list[OperatorCall]]:
    """The calls made within the block, in order."""
    calls: list[OperatorCall] = []

    def record(name: str, call: partial[Tensor]) -> Tensor:
        calls.append(OperatorCall.of(name, *call.args, **call.keywords))
        return call()

    with around_operators(record):
        yield calls


def programs_of(call: Callable[[], object]) -> list[Program]:
    """The Triton programs of a call, which is not computed."""
    with torch.no_grad(), recording() as programs:
        call()
    return programs


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """The launches of :func:`programs_of`."""
    return [launch for program in programs_of(call) for launch in program.launches]


def record_network(
    name: str,
    height: int,
    width: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float16,
    place: torch.device | str = "cpu",
    backend: str = "triton",
    output: Output = "labels",
    classes: int = 19,
    alpha: int = 2,
) -> list[OperatorCall]:
    """Record the calls of a variant of the family on a random picture.

    Args:
        name: name of the variant.
        height, width, batch: size of the picture.
        dtype: type of the network.
        place: the device.
        backend: the backend that runs it, and leaves its images as its kernels write them.
        output: ``labels`` or ``logits``.
        classes, alpha: number of classes, and the network's parameter alpha.
    """
    torch.manual_seed(0)
    model = create_model(name, num_classes=classes, alpha=alpha).eval().to(place)
    fast = accelerate(model, dtype=dtype, output=output, inplace=True, backend=backend)
    picture = torch.randn(batch, 3, height, width, dtype=dtype, device=place)
    picture = picture.contiguous(memory_format=torch.channels_last)  # as `normalize` returns it
    with torch.no_grad(), recorded_calls() as calls:
        fast(picture)
    return calls
