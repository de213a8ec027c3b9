"""dapf against its definition."""

import pytest
from conformance.cases import (
    BATCHES,
    CHANNELS,
    LAYOUT_NAMES,
    SIZES,
    dapf,
    describe,
    drawn,
    pairwise,
    shape_of,
    sizes,
)
from conformance.harness import LAYOUTS, check
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.operators("dapf")

TABLE = pairwise(
    channels=(1, 3, 31, 56, 119),
    width=(1, 7, 28, 59),
    out_channels=(1, 17, 31, 64),
    size=SIZES,
    dilations=((12, 24, 36), (1, 2, 4), (3,), (), (2, 2, 5, 8)),
    batch=(1, 2, 3),
    layout=tuple(LAYOUTS),
)
FEW = (
    dict(channels=10, width=5, out_channels=17, size=(9, 11), dilations=(1, 3, 12), batch=2),
    dict(channels=5, width=9, out_channels=33, size=(6, 21), dilations=(4, 8)),
)


@pytest.mark.parametrize("row", TABLE, ids=describe)
def test_table(subject, dtype, row):
    check(subject, dapf(**shape_of(row)), dtype, row["layout"])


@pytest.mark.parametrize("row", TABLE, ids=describe)
def test_table_contiguous(subject, row):
    check(subject, dapf(**shape_of(row)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", FEW, ids=describe)
def test_layouts(subject, dtype, shape, layout):
    check(subject, dapf(**shape), dtype, layout)


@given(data=st.data())
@drawn
def test_drawn(subject, data):
    call = dapf(
        batch=data.draw(BATCHES, "batch"),
        channels=data.draw(CHANNELS, "channels"),
        width=data.draw(st.integers(1, 24), "width"),
        out_channels=data.draw(CHANNELS, "out_channels"),
        size=data.draw(sizes(16, 30), "size"),
        dilations=data.draw(st.lists(st.integers(1, 40), max_size=4), "dilations"),
    )
    dtype = data.draw(st.sampled_from(subject.dtypes), "dtype")
    check(subject, call, dtype, data.draw(LAYOUT_NAMES, "layout"))
