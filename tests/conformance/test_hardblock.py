"""hardblock against its definition."""

import pytest
import torch
from conformance.cases import hardblock
from conformance.definition import BATCHES, CHANNELS, SIZES, pairwise, sizes, standard_tests
from conformance.harness import LAYOUTS, TOLERANCES, check_close
from hypothesis import strategies as st

from fassd.models import HarDBlock

pytestmark = pytest.mark.operators("hardblock")

TABLE = pairwise(
    channels=(1, 3, 24, 48, 63),
    widths=(
        (5,),
        (10, 18),
        (10, 18, 10, 28),
        (16, 28, 16, 46),
        (18, 30, 18, 52, 18, 30, 18, 88),
        (1, 2, 3),
    ),
    size=SIZES,
    batch=(1, 2, 3),
    layout=tuple(LAYOUTS),
)
FEW = (
    dict(channels=10, widths=(7, 8, 9), size=(9, 11), batch=2),
    dict(channels=18, widths=(10, 18, 10, 28), size=(6, 71)),
)

test_table, test_table_contiguous, test_layouts, test_drawn = standard_tests(
    TABLE,
    FEW,
    costly=True,
    batch=BATCHES,
    channels=CHANNELS,
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=9),
    size=sizes(16, 80),
)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 8, 16])
def test_equals_the_module(subject, layers):
    """The links are those of the network's own block."""
    torch.manual_seed(0)
    block = HarDBlock(9, 8, 1.7, layers).double().eval()  # batch norms as built scale by 1/sqrt
    x = torch.randn(1, 9, 12, 13, dtype=torch.float64)
    factor = (1 + block.layers[0].norm.eps) ** -0.5
    weights = [layer.conv.weight.detach() * factor for layer in block.layers]
    biases = [torch.zeros(weight.shape[0], dtype=torch.float64) for weight in weights]
    call = hardblock().with_(input=x, weights=weights, biases=biases)
    with torch.no_grad():
        right = block(x)
        scale = right.pow(2).mean().sqrt()
        result = subject(call.to(subject.exact, subject.device))
    check_close(result.double() / scale, right / scale, TOLERANCES[subject.exact])
