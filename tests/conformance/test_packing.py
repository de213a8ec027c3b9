"""pack_weight: what it gives changes no number, and is refused where it does not belong."""

from __future__ import annotations

import pytest
import torch
from conformance.cases import SAMPLES
from conformance.harness import TABLE, Call, Subject, check_result
from torch import Tensor

from fassd_kernels import ops, reference

PACKING = tuple(name for name, row in TABLE.items() if "packed" in row.names)


def pack(subject: Subject, weight: Tensor, stride=(1, 1), dilation=(1, 1)) -> Tensor:
    function = ops.operator("pack_weight", subject.target.backend.name)
    return function(weight, stride=stride, dilation=dilation)


def packed(subject: Subject, call: Call) -> Tensor | list[Tensor]:
    """What a call of each operator may be given as `packed`."""
    of = call.arguments
    if call.operator in ("conv_act", "normalize_conv_act"):
        return pack(subject, of["weight"], of["stride"], of["dilation"])
    if call.operator == "upsample_conv1x1":
        low = sum(x.shape[1] for x in of["low"])
        return [pack(subject, w) for w in (of["weight"][:, :low], of["weight"][:, low:])]
    if call.operator == "asymmetric_conv":
        weights = [of["vertical_weight"], of["horizontal_weight"]]
        steps = [(of["dilation"], 1), (1, of["dilation"])]
    elif call.operator == "dapf":
        weights = of["weights"]
        steps = [(1, 1), *(s for d in of["dilations"] for s in ((d, 1), (1, d))), (1, 1)]
    elif call.operator == "aspp":
        *weights, fuse = of["weights"]
        weights = [*weights, fuse[:, : -weights[-1].shape[0]]]
        steps = [(1, 1), *((d, d) for d in of["dilations"]), (1, 1), (1, 1)]
    elif call.operator == "mda":
        weights, d = of["weights"], of["dilation"]
        steps = [(1, 1), (1, 1), (d, 1), (1, d), (1, 1)]
    else:
        weights = of["weights"]
        steps = [(1, 1)] * len(weights)
    return [pack(subject, w, (1, 1), d) for w, d in zip(weights, steps, strict=True)]


@pytest.mark.operators(*PACKING)
def test_packed_weights_change_no_number(subject, dtype):
    for call in SAMPLES[subject.operator]:
        call = call.to(dtype, subject.device)
        result = subject(call.with_(packed=packed(subject, call)))
        assert torch.equal(result, subject(call))
        check_result(call, result)


@pytest.mark.operators("conv_act")
def test_any_strides_of_a_weight_are_packed_alike(subject, dtype):
    weight = torch.randn(9, 7, 3, 3, generator=torch.Generator().manual_seed(0))
    weight = weight.to(subject.device, dtype)
    right = pack(subject, weight)
    assert torch.equal(
        pack(subject, weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)), right
    )
    assert torch.equal(pack(subject, torch.cat([weight, weight])[9:]), right)


@pytest.mark.operators("conv_act")
def test_packed_for_something_else_is_refused(subject):
    if subject.target.backend.name == "reference":
        # It has no use for it, and ignores it.
        call = SAMPLES["conv_act"][3].to(torch.float32, subject.device)
        other = torch.zeros(7, device=subject.device)
        assert torch.equal(subject(call.with_(packed=other)), subject(call))
        return
    # 3x3, 7 to 9 channels.
    call = SAMPLES["conv_act"][3].to(torch.float32, subject.device)
    weight = call.arguments["weight"]
    for other in (
        pack(subject, weight[:, :6]),
        pack(subject, weight[:8]),
        pack(subject, weight.half()),
        pack(subject, weight)[1:],
        pack(subject, weight).double(),
        torch.zeros(7, device=subject.device),
    ):
        with pytest.raises(RuntimeError, match=r"packed weights .* are not what pack_weight gives"):
            subject(call.with_(packed=other))


@pytest.mark.operators("conv_act")
def test_packed_directly_serves_where_winograd_would(subject):
    """A 3x3 weight packed for a stride is packed tap by tap, which is right at stride 1 too."""
    call = SAMPLES["conv_act"][3].to(torch.float32, subject.device)
    packed_tap_by_tap = pack(subject, call.arguments["weight"], stride=(2, 2))
    check_result(call, subject(call.with_(packed=packed_tap_by_tap)))


@pytest.mark.operators("hardblock")
def test_all_or_none(subject):
    call = SAMPLES["hardblock"][0].to(torch.float32, subject.device)
    with pytest.raises(RuntimeError, match="hardblock: packed has 3 tensors; expected none or 4"):
        subject(call.with_(packed=packed(subject, call)[:3]))


@pytest.mark.operators("conv_act")
@pytest.mark.parametrize(
    ("weight", "keywords", "message"),
    [
        (torch.zeros(2, 3, 3), {}, "weight has shape .2, 3, 3.; expected four"),
        (torch.zeros(2, 3, 5, 5), {}, "5x5 kernel; expected 3x3, 3x1, 1x3, 1x1"),
        (torch.zeros(2, 3, 1, 1, dtype=torch.int32), {}, "weight has dtype torch.int32"),
        (torch.zeros(2, 3, 1, 1), {"stride": 0}, "stride is .0.*expected at least 1"),
        (torch.zeros(2, 3, 1, 1), {"dilation": [1, 2, 3]}, "one or two integers"),
    ],
)
def test_refusals(subject, weight, keywords, message):
    function = ops.operator("pack_weight", subject.target.backend.name)
    with pytest.raises(RuntimeError, match=f"pack_weight: .*{message}|{message}"):
        function(weight.to(subject.device), **keywords)


def test_the_reference_has_no_use_for_it():
    assert reference.pack_weight(torch.zeros(2, 3, 1, 1)).numel() == 0
