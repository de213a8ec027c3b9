"""aspp against its definition."""

import pytest
import torch
from conformance.cases import (
    BATCHES,
    CHANNELS,
    LAYOUT_NAMES,
    SIZES,
    aspp,
    describe,
    drawn,
    pairwise,
    shape_of,
    sizes,
)
from conformance.harness import LAYOUTS, check
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.operators("aspp")

TABLE = pairwise(
    channels=(1, 18, 63),
    width=(1, 9, 32),
    out_channels=(1, 17, 31),
    size=SIZES,
    dilations=((1,), (1, 2, 3), (12, 24, 36), (2, 40)),
    batch=(1, 2, 3),
    layout=tuple(LAYOUTS),
)
FEW = (dict(channels=10, width=7, size=(9, 11), batch=2),)


@pytest.mark.parametrize("row", TABLE, ids=describe)
def test_table(subject, dtype, row):
    check(subject, aspp(**shape_of(row)), dtype, row["layout"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", FEW, ids=describe)
def test_layouts(subject, dtype, shape, layout):
    check(subject, aspp(**shape), dtype, layout)


@given(data=st.data())
@drawn
def test_drawn(subject, data):
    call = aspp(
        batch=data.draw(BATCHES, "batch"),
        channels=data.draw(CHANNELS, "channels"),
        width=data.draw(st.integers(1, 20), "width"),
        out_channels=data.draw(st.integers(1, 20), "out_channels"),
        size=data.draw(sizes(16, 30), "size"),
        dilations=data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3), "dilations"),
    )
    dtype = data.draw(st.sampled_from(subject.dtypes), "dtype")
    check(subject, call, dtype, data.draw(LAYOUT_NAMES, "layout"))


def test_the_mean_is_of_each_picture(subject):
    """One picture of a batch does not change another's result."""
    call = aspp(batch=2, size=(6, 7)).to(torch.float32, subject.device)
    result = subject(call)
    image = call.arguments["input"].clone()
    image[1] += 5
    assert torch.equal(subject(call.with_(input=image))[0], result[0])
