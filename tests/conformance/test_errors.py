"""What the operators refuse: the same calls everywhere, with a message that names the argument."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conformance import cases
from conformance.harness import Call, Subject
from conformance.test_packing import PACKING, packed
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Refusal:
    """A valid call, a change that spoils it, and the argument that the message must name."""

    argument: str
    why: str
    change: Callable[[Arguments], Arguments]
    base: Call

    def __str__(self) -> str:
        return f"{self.base.operator}-{self.argument}-{self.why}".replace(" ", "_")

    @property
    def call(self) -> Call:
        call = self.base.to(torch.float32)
        return call.with_(**self.change(call.arguments))

    @property
    def message(self) -> str:
        return rf"{self.base.operator}: {re.escape(self.argument)}(?!\w)"


Spoil = Callable[[Tensor], Tensor]

# Ways to spoil a tensor that hold for every argument that must match the others.
FOREIGN: dict[str, Spoil] = {
    "dtype": lambda x: x.half(),
    "integers": lambda x: x.int(),
    "device": lambda x: x.to("meta"),
}
SPOILED_IMAGE: dict[str, Spoil] = {
    **FOREIGN,
    "rank": lambda x: x[0],
    "batch": lambda x: torch.cat([x, x]),
    "height": lambda x: x[:, :, 1:],
    "width": lambda x: x[..., 1:],
}
SPOILED_WEIGHT: dict[str, Spoil] = {
    **FOREIGN,
    "rank": lambda x: x[0],
    "fewer input channels": lambda x: x[:, 1:],
    "more input channels": lambda x: torch.cat([x, x], 1),
    "kernel": lambda x: x.repeat(1, 1, 2, 2),
    "no output channels": lambda x: x[:0],
}
SPOILED_VECTOR: dict[str, Spoil] = {
    **FOREIGN,
    "rank": lambda x: x[None],
    "length": lambda x: x[1:],
    "a single value": lambda x: x[:1],
    "scalar": lambda x: x[0],
}


def spoiled(
    base: Call, name: str, ways: dict[str, Spoil], index: int | None = None, label=""
) -> list:
    """`base` with its tensor `name`, or `name[index]`, spoiled in each of `ways`."""

    def change(way: Spoil) -> Callable[[Arguments], Arguments]:
        def changed(arguments: Arguments) -> Arguments:
            value = arguments[name]
            if index is None:
                return {name: way(value)}
            return {name: [way(x) if i == index else x for i, x in enumerate(value)]}

        return changed

    argument = label or (name if index is None else f"{name}[{index}]")
    return [Refusal(argument, why, change(way), base) for why, way in ways.items()]


def given(base: Call, name: str, values: dict[str, Any], argument: str = "") -> list[Refusal]:
    """`base` with its argument `name` replaced by each of `values`."""
    return [
        Refusal(argument or name, why, lambda _, value=value: {name: value}, base)
        for why, value in values.items()
    ]


def each(base: Call, name: str, ways: dict[str, Spoil]) -> list[Refusal]:
    """`base` with each tensor of its list `name` spoiled."""
    return [r for i in range(len(base.arguments[name])) for r in spoiled(base, name, ways, i)]


def no_lists(base: Call, *names: str) -> list[Refusal]:
    """`base` with one of its lists empty, or too few packed weights."""
    empty = [r for name in names for r in given(base, name, {"empty list": []})]
    return [*empty, *given(base, "packed", {"too few": [torch.zeros(0)]})]


def without(ways: dict[str, Spoil], *names: str) -> dict[str, Spoil]:
    return {why: way for why, way in ways.items() if why not in names}


# A tensor by itself has nothing to disagree with.
ALONE = {why: SPOILED_IMAGE[why] for why in ("integers", "rank")}
NO_PIXELS: dict[str, Spoil] = {
    "empty height": lambda x: x[:, :, :0],
    "empty width": lambda x: x[..., :0],
}
WIDER: dict[str, Spoil] = {"more output channels": lambda x: torch.cat([x, x])}
NOT_POSITIVE = {"zero": (0, 0), "vertical zero": (0, 1), "horizontal negative": (1, -1)}
NOT_PAIRS = {"empty list": (), "three values": (1, 1, 1)}
BAD_ACTIVATION = {"unknown": "swish", "capitals": "ReLU", "empty": ""}


def no_channels(call: Call) -> dict[str, Any]:
    return {"inputs": [torch.ones(1, 0, 5, 5)], "weight": torch.ones(4, 0, 1, 1)}


def conv_act_refusals() -> list[Refusal]:
    base = cases.conv_act(channels=(3, 2), activation="prelu", residual=True)
    plain = cases.conv_act()
    return [
        *spoiled(base, "inputs", SPOILED_IMAGE, 1),
        *spoiled(plain, "inputs", ALONE, 0),
        *given(plain, "inputs", {"empty list": []}),
        *spoiled(base, "weight", SPOILED_WEIGHT),
        *given(plain, "weight", {"5x5": torch.ones(4, 3, 5, 5), "3x2": torch.ones(4, 3, 3, 2)}),
        *spoiled(base, "bias", SPOILED_VECTOR),
        *spoiled(base, "slope", SPOILED_VECTOR),
        *given(base, "slope", {"missing": None}, "activation"),
        *given(plain, "slope", {"given": torch.ones(4)}, "activation"),
        *given(base, "activation", BAD_ACTIVATION),
        *spoiled(base, "residual", SPOILED_IMAGE),
        *spoiled(
            base, "residual", {"channels": lambda x: x[:, 1:], "broadcast": lambda x: x[:, :1]}
        ),
        *given(plain, "stride", {**NOT_POSITIVE, **NOT_PAIRS}),
        *given(plain, "dilation", {**NOT_POSITIVE, **NOT_PAIRS, "beyond 32 bits": (1, 2**62)}),
        *given(plain, "pool", {"three": 3, "zero": 0}),
        Refusal("weight", "no input channels", no_channels, plain),
    ]


def grouped_conv_act_refusals() -> list[Refusal]:
    base = cases.grouped_conv_act(1, 6, 2, activation="prelu", residual=True)
    plain = cases.grouped_conv_act()
    sides = {"3x1": torch.ones(4, 1, 3, 1), "9x9": torch.ones(4, 1, 9, 9)}
    return [
        *spoiled(base, "input", ALONE),
        *spoiled(base, "weight", SPOILED_WEIGHT),
        *given(plain, "weight", sides),
        *spoiled(base, "bias", SPOILED_VECTOR),
        *spoiled(base, "slope", SPOILED_VECTOR),
        *given(base, "slope", {"missing": None}, "activation"),
        *given(plain, "activation", BAD_ACTIVATION),
        *spoiled(base, "residual", SPOILED_IMAGE),
        *given(plain, "stride", {**NOT_POSITIVE, **NOT_PAIRS}),
        *given(plain, "dilation", {**NOT_POSITIVE, **NOT_PAIRS, "beyond 32 bits": (1, 2**62)}),
        *given(plain, "groups", {"no divisor": 3, "zero": 0, "negative": -1}),
    ]


def asymmetric_conv_refusals() -> list[Refusal]:
    base = cases.asymmetric_conv(activation="prelu")
    plain = cases.asymmetric_conv()
    transposed = {"1x3": lambda x: x.transpose(2, 3)}
    return [
        *spoiled(base, "input", ALONE),
        *spoiled(base, "vertical_weight", {**SPOILED_WEIGHT, **transposed}),
        *spoiled(base, "horizontal_weight", {**SPOILED_WEIGHT, **transposed}),
        *(
            refusal
            for side in ("vertical", "horizontal")
            for name in (f"{side}_bias", f"{side}_slope")
            for refusal in spoiled(base, name, SPOILED_VECTOR)
        ),
        *given(base, "vertical_slope", {"missing": None}, "activation"),
        *given(base, "horizontal_slope", {"missing": None}, "activation"),
        *given(plain, "vertical_slope", {"given": torch.ones(4)}, "activation"),
        *given(plain, "activation", {**BAD_ACTIVATION, "of conv_act alone": "silu"}),
        *given(plain, "dilation", {"zero": 0, "negative": -2}),
    ]


def branches_refusals(base: Call) -> list[Refusal]:
    """Of dapf and aspp, whose first weight decides the width: the others disagree with it."""
    count = len(base.arguments["weights"])
    first = without(SPOILED_WEIGHT, "no output channels")
    return [
        *spoiled(base, "input", ALONE),
        *spoiled(base, "weights", first, 0),
        *(r for i in range(1, count) for r in spoiled(base, "weights", SPOILED_WEIGHT, i)),
        *(r for i in range(1, count - 1) for r in spoiled(base, "weights", WIDER, i)),
        *each(base, "biases", SPOILED_VECTOR),
        *no_lists(base, "weights", "biases"),
        *given(base, "dilations", {"zero": (0, 1), "negative": (1, -3)}),
        *given(base, "dilations", {"more than weights": (1, 2, 3), "fewer": (1,)}, "weights"),
    ]


def hardblock_refusals() -> list[Refusal]:
    base = cases.hardblock()
    return [
        *spoiled(base, "input", ALONE),
        *each(base, "weights", SPOILED_WEIGHT),
        *each(base, "biases", SPOILED_VECTOR),
        *no_lists(base, "weights", "biases"),
    ]


def mda_refusals() -> list[Refusal]:
    base = cases.mda()
    lists = ("weights", "scales", "shifts", "slopes")
    refusals = [
        *spoiled(base, "input", ALONE),
        *given(base, "dilation", {"zero": 0, "negative": -2}),
        *no_lists(base, *lists),
    ]
    for i, role in enumerate(("reduce", "square", "vertical", "horizontal", "project")):
        ways = {**SPOILED_WEIGHT, **WIDER} if i else SPOILED_WEIGHT
        refusals += spoiled(base, "weights", ways, i, f"weights[{i}] ({role})")
    for name in lists:
        one_more = [*base.arguments[name], base.arguments[name][0]]
        refusals += given(base, name, {"one more": [tensor.float() for tensor in one_more]})
        if name != "weights":
            refusals += each(base, name, SPOILED_VECTOR)
    return refusals


def upsample_conv1x1_refusals() -> list[Refusal]:
    base = cases.upsample_conv1x1(low=(3, 2), skip=(2, 1), activation="prelu")
    plain = cases.upsample_conv1x1()
    return [
        *spoiled(base, "low", SPOILED_IMAGE, 1),
        *spoiled(base, "skip", SPOILED_IMAGE, 1),
        *spoiled(plain, "low", {**ALONE, **NO_PIXELS}, 0),
        *spoiled(plain, "skip", without(SPOILED_IMAGE, "height", "width"), 0),
        *given(plain, "low", {"empty list": []}),
        *given(plain, "skip", {"empty list": []}),
        *spoiled(base, "weight", SPOILED_WEIGHT),
        *spoiled(base, "bias", SPOILED_VECTOR),
        *spoiled(base, "slope", SPOILED_VECTOR),
        *given(base, "slope", {"missing": None}, "activation"),
        *given(plain, "slope", {"given": torch.ones(4)}, "activation"),
        *given(plain, "activation", BAD_ACTIVATION),
    ]


def max_pool_refusals() -> list[Refusal]:
    base = cases.max_pool()
    paddings = {"negative": (-1, 1), "more than half": (1, 2), **NOT_PAIRS}
    return [
        *spoiled(base, "input", {**ALONE, **NO_PIXELS}),
        *given(base, "kernel", {**NOT_POSITIVE, **NOT_PAIRS, "too large": (3, 11)}),
        *given(base, "stride", {**NOT_POSITIVE, **NOT_PAIRS}),
        *given(base, "padding", paddings),
    ]


def upsample_refusals(base: Call) -> list[Refusal]:
    sizes = {
        "zero height": (0, 3),
        "negative width": (3, -1),
        "one value": (3,),
        "three": (3, 3, 3),
    }
    return [
        *spoiled(base, "input", {**ALONE, **NO_PIXELS}),
        *given(base, "size", {**sizes, "empty list": ()}),
    ]


def labels_refusals(base: Call) -> list[Refusal]:
    counts = {
        "no channels": lambda x: x[:, :0],
        "257 channels": lambda x: x[:, :1].repeat(1, 257, 1, 1),
    }
    return [*upsample_refusals(base), *spoiled(base, "input", counts)]


def upsample_confidence_refusals() -> list[Refusal]:
    base = cases.upsample_confidence()
    return [
        *labels_refusals(base),
        *given(base, "measure", {"unknown": "certainty", "empty": ""}),
        *given(
            base, "temperature", {"zero": 0.0, "negative": -1.0, "NaN": math.nan, "inf": math.inf}
        ),
    ]


def picture_refusals(base: Call) -> list[Refusal]:
    pictures = {
        "floats": lambda x: x.float(),
        "rank": lambda x: x[0],
        "four channels": lambda x: torch.cat([x, x[..., :1]], 3),
        "channels first": lambda x: x.permute(0, 3, 1, 2),
    }
    counts = {"empty list": (), "two values": (1.0, 2.0), "four values": (1.0, 2.0, 3.0, 4.0)}
    zeros = {f"zero at {i}": tuple(float(i != j) for j in range(3)) for i in range(3)}
    return [
        *spoiled(base, "image", pictures),
        *given(base, "mean", counts),
        *given(base, "std", {**counts, **zeros}),
    ]


def normalize_refusals() -> list[Refusal]:
    base = cases.normalize()
    types = {"integers": torch.int32, "bytes": torch.uint8}
    return [*picture_refusals(base), *given(base, "dtype", types)]


def normalize_conv_act_refusals() -> list[Refusal]:
    base = cases.normalize_conv_act(out_channels=6, activation="prelu")
    weights = {why: way for why, way in SPOILED_WEIGHT.items() if why != "dtype"}
    steps = {"zero": (0, 1), "negative": (1, -1)}
    return [
        *picture_refusals(base),
        *spoiled(base, "weight", weights),
        *spoiled(base, "bias", SPOILED_VECTOR),
        *spoiled(base, "slope", SPOILED_VECTOR),
        *given(base, "stride", steps),
        *given(base, "dilation", steps),
    ]


def schema_refusals(operator: str) -> list[Refusal]:
    """What any operator refuses: images that are none."""
    base = cases.from_schema(operator)
    return [
        refusal
        for name in base.row.images
        for refusal in spoiled(
            base,
            name,
            {"rank": lambda x: x[0]},
            0 if isinstance(base.arguments[name], list) else None,
        )
    ]


REFUSALS = {
    **{name: schema_refusals(name) for name in cases.UNKNOWN},
    "conv_act": conv_act_refusals(),
    "grouped_conv_act": grouped_conv_act_refusals(),
    "asymmetric_conv": asymmetric_conv_refusals(),
    "dapf": branches_refusals(cases.dapf(dilations=(1, 2))),
    "aspp": branches_refusals(cases.aspp(dilations=(1, 2))),
    "hardblock": hardblock_refusals(),
    "max_pool": max_pool_refusals(),
    "mda": mda_refusals(),
    "upsample_conv1x1": upsample_conv1x1_refusals(),
    "upsample": upsample_refusals(cases.upsample()),
    "upsample_argmax": labels_refusals(cases.upsample_argmax()),
    "upsample_confidence": upsample_confidence_refusals(),
    "normalize": normalize_refusals(),
    "normalize_conv_act": normalize_conv_act_refusals(),
}


@pytest.mark.operators("upsample", "upsample_argmax")
@pytest.mark.parametrize("size", [(2**31, 2**31), (2**20, 2**20)])
def test_results_beyond_all_memory(subject, size):
    """Sizes whose product overflows 64 bits, and sizes that merely no machine holds."""
    call = getattr(cases, subject.operator)()
    with pytest.raises((RuntimeError, MemoryError), match=r"memory|overflow|too large|large"):
        subject(call.to(torch.float32, subject.device).with_(size=size))


def resized(tensor: Tensor, size: int) -> Tensor:
    """A copy whose storage was given so many bytes."""
    copy = tensor.clone()
    copy.untyped_storage().resize_(size)
    return copy


def replaced(call: Call, way: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Call]]:
    """An argument's name and the call with `way` of one of its tensors, for each that has elements.

    Which of a list's packed weights it is, not every backend says.
    """
    for name, value in call.arguments.items():
        for i, tensor in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(tensor, Tensor) and tensor.numel() > 0:
                one = isinstance(value, Tensor)
                changed = way(tensor) if one else [*value[:i], way(tensor), *value[i + 1 :]]
                label = name if one or name == "packed" else f"{name}[{i}]"
                yield label, call.with_(**{name: changed})


def sound_calls(subject: Subject) -> Iterator[Call]:
    """The calls that the table spoils, with packed weights where the operator takes any."""
    for base in {id(refusal.base): refusal.base for refusal in REFUSALS[subject.operator]}.values():
        call = base.to(torch.float32, subject.device)
        packs = call.operator in PACKING
        yield call.with_(packed=packed(subject, call)) if packs else call


def test_storage_freed_or_shrunk(subject):
    """What FSDP and ``resize_`` leave: PyTorch's convolution raises, and so does each argument."""
    for call in sound_calls(subject):
        subject(call)  # what is planned once and kept does not answer for those below
        for kept in (lambda x: 0, lambda x: x.untyped_storage().nbytes() - 1):
            for name, spoiled in replaced(call, lambda x, kept=kept: resized(x, kept(x))):
                message = rf"{subject.operator}: {re.escape(name)}(?!\w).* storage holds"
                with pytest.raises(RuntimeError, match=message):
                    subject(spoiled)


@pytest.mark.operators(*PACKING)
def test_packed_weights_on_another_device(subject):
    """On the meta device, whose kernels compute nothing, they do not answer for the others."""
    for call in sound_calls(subject):
        given = call.arguments["packed"]
        for at, spoiled in enumerate([given] if isinstance(given, Tensor) else given):
            elsewhere = spoiled.to("meta")
            if isinstance(given, list):
                elsewhere = [*given[:at], elsewhere, *given[at + 1 :]]
            message = rf"{subject.operator}: packed.* on (meta|another kind)"
            with pytest.raises(RuntimeError, match=message):
                subject(call.with_(packed=elsewhere))


@pytest.mark.operators("conv_act")
def test_storage_freed_before_a_conversion_or_a_gradient(subject):
    call = cases.conv_act().to(torch.float32, subject.device)
    freed = call.map(lambda x: resized(x, 0), only=("weight",))
    device = torch.device(subject.device).type
    with torch.autocast(device, subject.half), pytest.raises(RuntimeError, match="storage holds 0"):
        subject(freed)
    leaf = call.requiring_grad()
    result = subject(leaf)
    leaf.arguments["weight"].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"storage holds 0|not allocated"):
        result.sum().backward()


def to(call: Call, device: str) -> Call:
    """The call on `device`, but for tensors that stand for another device."""
    return call.map(lambda x: x if x.is_meta else x.to(device))


def test_valid_calls_are_taken(subject):
    """What the table spoils is sound before: otherwise the errors would prove nothing."""
    for base in {id(refusal.base): refusal.base for refusal in REFUSALS[subject.operator]}.values():
        assert subject(base.to(torch.float32, subject.device)).numel() > 0


def test_refused(subject):
    """One test for an operator's whole table, which a failure lists."""
    wrong = [
        f"{refusal}: {said}"
        for refusal in REFUSALS[subject.operator]
        if (said := missed(refusal, lambda call: subject(to(call, subject.device))))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("operator", REFUSALS)
def test_refused_by_fake_kernel(operator):
    """Under torch.compile and torch.export the same calls fail, in the same words."""
    mode = FakeTensorMode()

    def run(call: Call) -> Tensor:
        with mode:
            return call.map(mode.from_tensor)(getattr(torch.ops.fassd_kernels, operator))

    wrong = [f"{r}: {said}" for r in REFUSALS[operator] if (said := missed(r, run))]
    assert not wrong, "\n".join(wrong)


def missed(refusal: Refusal, run: Callable[[Call], Any]) -> str:
    """How `run` fails to refuse as it should; empty if it does."""
    try:
        result = run(refusal.call)
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        return "" if re.search(refusal.message, str(error)) else f"said {said!r}"
    except Exception as error:
        return f"raised {type(error).__name__}: {str(error).splitlines()[0]}"
    return f"returned {tuple(result.shape)}"
