"""normalize against its definition."""

import pytest
import torch
from conformance.cases import MEAN, STD, normalize
from conformance.definition import BATCHES, SIZES, pairwise, sizes, standard_tests
from conformance.harness import LAYOUTS
from hypothesis import strategies as st

pytestmark = pytest.mark.operators("normalize")

TABLE = pairwise(size=SIZES, batch=(1, 2, 3), layout=tuple(LAYOUTS))

THREE = st.tuples(*[st.floats(1, 255)] * 3)
test_table, test_table_contiguous, test_layouts, test_drawn = standard_tests(
    TABLE, [dict(batch=2, size=(9, 11))], batch=BATCHES, size=sizes(40, 70), mean=THREE, std=THREE
)


def test_every_value_exactly(subject, dtype):
    """float64 arithmetic, rounded once: the 256 values of every channel have one right answer."""
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    call = normalize().with_(image=values).to(dtype, subject.device)
    result = subject(call).cpu()
    for channel in range(3):
        right = [(value - MEAN[channel]) / STD[channel] for value in range(256)]
        right = torch.tensor(right, dtype=torch.float64).to(dtype)
        assert torch.equal(result[0, channel].reshape(-1), right)


def test_red_comes_last(subject):
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).expand(1, 2, 2, 3)
    call = normalize().with_(image=image, mean=(0.0, 0.0, 0.0), std=(1.0, 2.0, 5.0))
    result = subject(call.to(torch.float32, subject.device))
    assert result[0, :, 1, 1].tolist() == [30, 10, 2]
