"""max_pool against its definition."""

import pytest
import torch
from conformance.definition import BATCHES, pairwise, sizes, standard_tests
from conformance.harness import LAYOUTS, Call
from hypothesis import strategies as st

from fassd_kernels import reference

pytestmark = pytest.mark.operators("max_pool")

TABLE = pairwise(
    channels=(1, 3, 8, 16, 17, 33, 64, 119),
    size=((1, 1), (1, 19), (23, 1), (5, 7), (14, 37)),
    kernel=((3, 3), (2, 2), (1, 1), (5, 2), (3, 9)),
    stride=((2, 2), (1, 1), (3, 2), (4, 5)),
    padding=((0, 0), (1, 1), (2, 1), (9, 9)),
    batch=(1, 2, 3),
    layout=tuple(LAYOUTS),
)
FEW = (dict(channels=19, size=(9, 14), batch=2), dict(channels=3, size=(8, 9), kernel=(2, 2)))

test_table, test_table_contiguous, test_layouts, test_drawn = standard_tests(
    TABLE,
    FEW,
    batch=BATCHES,
    channels=st.integers(1, 70),
    size=sizes(),
    kernel=sizes(5, 5),
    stride=sizes(4, 4),
    padding=sizes(3, 3),
)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced_channels_last"])
def test_what_is_not_finite(subject, dtype, layout):
    """NaN is larger than all, minus infinity is a value, and no window's result is the padding."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(-3, 4, (2, 21, 9, 14), generator=generator).double()
    odd = torch.randint(0, 20, image.shape, generator=generator)
    for number, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        image[odd == number] = value
    image[0] = -torch.inf
    image[1, 3] = torch.nan
    window = {"kernel": [3, 3], "stride": [2, 2], "padding": [1, 1]}
    right = reference.max_pool(image, **window)
    given = LAYOUTS[layout](image.to(subject.device, dtype))
    result = subject(Call("max_pool", {"input": given, **window})).cpu().double()
    assert torch.equal(result.isnan(), right.isnan())
    assert torch.equal(result.nan_to_num(7.0), right.nan_to_num(7.0))
