"""dapf against its definition."""

import pytest
from conformance.definition import BATCHES, CHANNELS, SIZES, pairwise, sizes, standard_tests
from conformance.harness import LAYOUTS
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

test_table, test_table_contiguous, test_layouts, test_drawn = standard_tests(
    TABLE,
    FEW,
    batch=BATCHES,
    channels=CHANNELS,
    width=st.integers(1, 24),
    out_channels=CHANNELS,
    size=sizes(16, 30),
    dilations=st.lists(st.integers(1, 40), max_size=4),
)
