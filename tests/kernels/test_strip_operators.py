"""The resizing operators of the CPU on strips of rows: bit for bit the whole result's rows."""

from typing import get_args

import pytest
import torch

import fassd_kernels
from fassd.models.layers import Rows
from fassd_kernels.reference.upsample import Measure

OPS = torch.ops.fassd_kernels
SIZES = [
    ((23, 17), (47, 35)),
    ((9, 4), (9, 7)),
    ((1, 3), (6, 5)),
    ((40, 9), (11, 4)),
    ((7, 5), (1, 5)),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

pytestmark = pytest.mark.skipif(
    not fassd_kernels.backends()["cpu"].available, reason="the C++ kernels are not built"
)


def strips_of(low, high):
    """Strips of the result, and what of the input each is made of."""
    for first in range(0, high[0], 5):
        last = min(first + 5, high[0])
        rows = Rows(0, low[0], first, high[0])
        begin, end = rows.read(last - first)
        yield slice(first, last), slice(begin, end), rows._replace(low=begin)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("low", "high"), SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_resizing(low, high, dtype, layout):
    x = torch.randn(2, 19, *low).to(dtype).contiguous(memory_format=layout)
    whole, labels = OPS.upsample(x, high), OPS.upsample_argmax(x, high)
    certainties = {
        measure: OPS.upsample_confidence(x, high, measure=measure, temperature=0.7)
        for measure in get_args(Measure)
    }
    for made, read, rows in strips_of(low, high):
        size = (made.stop - made.start, high[1])
        part = x[:, :, read]
        assert torch.equal(OPS.upsample_rows(part, size, rows), whole[:, :, made])
        assert torch.equal(OPS.upsample_argmax_rows(part, size, rows), labels[:, made])
        for measure, whole_certainty in certainties.items():
            found = OPS.upsample_confidence_rows(part, size, rows, measure, 0.7)
            assert torch.equal(found, whole_certainty[:, :, made])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("low", "high"), SIZES)
def test_the_convolution_behind_resizing(low, high, dtype):
    below, beside = torch.randn(1, 11, *low).to(dtype), torch.randn(1, 21, *high).to(dtype)
    weight, bias = torch.randn(14, 32, 1, 1).to(dtype), torch.randn(14).to(dtype)
    slope = torch.rand(14).to(dtype)
    for activation, slopes in (("relu", None), ("prelu", slope)):
        whole = OPS.upsample_conv1x1([below], [beside], weight, bias, slopes, activation=activation)
        for made, read, rows in strips_of(low, high):
            strip = OPS.upsample_conv1x1_rows(
                [below[:, :, read]], [beside[:, :, made]], weight, bias, slopes, None, activation,
                rows,
            )  # fmt: skip
            assert torch.equal(strip, whole[:, :, made])


def test_rows_that_are_not_there():
    x = torch.zeros(1, 2, 4, 5)
    with pytest.raises(RuntimeError, match="lies between positions 3 and 4 of 10, but there are 4"):
        OPS.upsample_rows(x, (3, 5), (0, 10, 8, 20))
    for rows, told in (
        ((8, 10, 0, 20), "4 rows from 8 on of 10"),
        ((0, 4, 19, 20), "3 rows from 19 on of 20"),
        ((-1, 10, 0, 20), "4 rows from -1 on of 10"),
    ):
        with pytest.raises(RuntimeError, match=f"upsample_argmax_rows: rows has a strip of {told}"):
            OPS.upsample_argmax_rows(x, (3, 5), rows)
