"""normalize_conv_act against its definition, and against the two operators that it stands for."""

from __future__ import annotations

import pytest
import torch
from conformance.cases import MEAN, STD, describe, normalize_conv_act, pairwise, shape_of
from conformance.harness import LAYOUTS, check, check_close

import fassd_kernels

pytestmark = pytest.mark.operators("normalize_conv_act")

TABLE = pairwise(
    size=((5, 7), (1, 19), (33, 50), (1, 1), (64, 67)),
    batch=(1, 2),
    out_channels=(1, 16, 17, 33),
    kernel=((3, 3), (1, 1), (3, 1)),
    stride=((1, 1), (2, 2), (3, 3), (1, 2)),
    dilation=((1, 1), (2, 3), (9, 9)),
    activation=("none", "relu", "prelu"),
    bias=(True, False),
    layout=tuple(LAYOUTS),
)


@pytest.mark.parametrize("row", TABLE, ids=describe)
def test_table(subject, dtype, row):
    check(subject, normalize_conv_act(**shape_of(row)), dtype, row["layout"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(subject, dtype, layout):
    check(subject, normalize_conv_act(2, 16, (19, 23), stride=(2, 2)), dtype, layout)


def test_equals_its_two_parts(subject, dtype):
    """What a user gains is time, not other numbers."""
    call = normalize_conv_act(2, 16, (33, 50), stride=(2, 2), activation="relu")
    call = call.to(dtype, subject.device)
    of = call.arguments
    name = subject.target.backend.name
    x = fassd_kernels.ops.operator("normalize", name)(of["image"], mean=MEAN, std=STD, dtype=dtype)
    conv = fassd_kernels.ops.operator("conv_act", name)
    right = conv([x], of["weight"], of["bias"], stride=(2, 2), activation="relu")
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 1e-3)
    check_close(subject(call), right.double(), tolerance)
