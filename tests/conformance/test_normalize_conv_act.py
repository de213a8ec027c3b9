"""normalize_conv_act against its definition, and against the two operators that it stands for."""

from __future__ import annotations

import pytest
import torch
from conformance.cases import MEAN, STD, normalize_conv_act
from conformance.definition import ACTIVATIONS, BATCHES, pairwise, sizes, standard_tests
from conformance.harness import LAYOUTS, check_close, check_result
from hypothesis import strategies as st

import fassd_kernels
from fassd_kernels import checks
from fassd_kernels.reference.conv_act import KERNELS

pytestmark = pytest.mark.operators("normalize_conv_act")

TABLE = pairwise(
    size=((5, 7), (1, 19), (33, 50), (1, 1), (64, 67)),
    batch=(1, 2),
    out_channels=(1, 16, 17, 33),
    kernel=((3, 3), (1, 1), (3, 1)),
    stride=((1, 1), (2, 2), (3, 3), (1, 2)),
    dilation=((1, 1), (2, 3), (9, 9)),
    activation=checks.ACTIVATIONS,
    bias=(True, False),
    layout=tuple(LAYOUTS),
)

test_table, test_table_contiguous, test_layouts, test_drawn = standard_tests(
    TABLE,
    [dict(batch=2, out_channels=16, size=(19, 23), stride=(2, 2))],
    batch=BATCHES,
    out_channels=st.integers(1, 40),
    size=sizes(),
    kernel=st.sampled_from(KERNELS),
    stride=sizes(3, 3),
    dilation=sizes(3, 3),
    activation=ACTIVATIONS,
    bias=st.booleans(),
)


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 3)])
def test_rows_at_any_address(subject, dtype, first, stride):
    """Pixels side by side, whose rows begin at any byte of a word, and end at any."""
    call = normalize_conv_act(1, 17, (9, 70), stride=stride, dilation=(2, 1)).to(
        dtype, subject.device
    )
    picture = call.arguments["image"]
    wide = torch.full((1, 9, 77, 3), 255, dtype=torch.uint8, device=picture.device)
    part = wide.flatten()[first:][: 9 * 231 - first].as_strided((1, 9, 70, 3), (2079, 231, 3, 1))
    part.copy_(picture)
    check_result(call.with_(image=part), subject(call.with_(image=part)))


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
