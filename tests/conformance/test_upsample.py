"""upsample and upsample_argmax against their definitions."""

import pytest
import torch
from conformance.cases import upsample, upsample_argmax
from conformance.definition import BATCHES, pairwise, sizes, standard_tests
from conformance.harness import LAYOUTS, TOLERANCES, Call, check_close, check_result
from hypothesis import strategies as st

from fassd_kernels import reference

both = pytest.mark.operators("upsample", "upsample_argmax")
to_image = pytest.mark.operators("upsample")
to_labels = pytest.mark.operators("upsample_argmax")

TABLE = pairwise(
    channels=(1, 2, 7, 11, 16, 19, 33, 119, 256),
    low_size=((1, 1), (1, 9), (4, 1), (3, 5), (17, 25)),
    size=((1, 1), (1, 19), (23, 1), (5, 7), (17, 25), (33, 50), (2, 3)),  # smaller, equal, larger
    batch=(1, 2, 3),
    layout=tuple(LAYOUTS),
    align_corners=(True, False),
)
FEW = (
    dict(channels=19, low_size=(4, 6), size=(16, 24), batch=2),
    dict(channels=5, low_size=(9, 11), size=(7, 13)),
    dict(channels=11, low_size=(5, 8), size=(15, 32), align_corners=False),
)

test_table, test_table_contiguous, test_layouts, test_drawn = map(
    both,
    standard_tests(
        TABLE,
        FEW,
        batch=BATCHES,
        channels=st.integers(1, 40) | st.integers(1, 256),
        low_size=sizes(12, 20),
        size=sizes(),
        align_corners=st.booleans(),
    ),
)


@to_image
def test_same_size_is_the_input(subject, dtype):
    call = upsample(channels=5, low_size=(6, 9), size=(6, 9)).to(dtype, subject.device)
    assert torch.equal(subject(call), call.arguments["input"])


@to_image
@pytest.mark.parametrize("size", [(9, 13), (2, 2), (3, 25)])
def test_corners_stay(subject, dtype, size):
    call = upsample(channels=5, low_size=(5, 7), size=size).to(dtype, subject.device)
    ends = (slice(None), slice(None), slice(None, None, size[0] - 1))
    image = call.arguments["input"]
    corners = subject(call)[ends][..., :: size[1] - 1]
    assert torch.equal(corners, image[:, :, ::4, ::6])


@to_image
@pytest.mark.parametrize("size", [(9, 13), (2, 2), (1, 25), (4, 1)])
def test_plane_stays_a_plane(subject, size):
    """A picture linear in its coordinates is resized without error: x runs from 0 to 1, as y."""
    height, width = (torch.linspace(0, 1, n, dtype=torch.float64) for n in (5, 7))
    call = upsample(size=size).with_(input=(3 * height[:, None] - 2 * width)[None, None])
    y, x = (torch.linspace(0, 1, n, dtype=torch.float64) for n in size)
    right = (3 * y[:, None] - 2 * x)[None, None]
    result = subject(call.to(subject.exact, subject.device))
    check_close(result, right, TOLERANCES[subject.exact])


@to_image
def test_outer_edges_on_outer_edges(subject, dtype):
    """Twice as large, pixels lie a quarter beside the old ones: exact in every dtype."""
    image = torch.tensor([[0.0, 8.0, 24.0]], dtype=dtype, device=subject.device)[None, None]
    call = Call("upsample", {"input": image, "size": (2, 6), "align_corners": False})
    assert subject(call)[0, 0].tolist() == [[0, 2, 6, 12, 20, 24]] * 2


@to_image
def test_exact_halves(subject, dtype):
    """2 x 2 to 3 x 3: the new pixels are means, exact in every dtype."""
    image = torch.tensor([[0.0, 4.0], [8.0, 16.0]], dtype=dtype, device=subject.device)
    result = subject(Call("upsample", {"input": image[None, None], "size": (3, 3)}))
    assert result[0, 0].tolist() == [[0, 2, 4], [4, 7, 10], [8, 12, 16]]


@to_labels
def test_first_of_equal_channels_wins(subject, dtype):
    logits = torch.zeros(2, 19, 3, 4, dtype=dtype, device=subject.device)
    logits[1, 5:] = 1
    labels = subject(Call("upsample_argmax", {"input": logits, "size": (5, 7)}))
    assert labels.tolist() == [[[0] * 7] * 5, [[5] * 7] * 5]


@to_labels
def test_nan_counts_as_the_largest(subject, dtype):
    logits = torch.zeros(1, 9, 3, 3, dtype=dtype, device=subject.device)
    logits[:, 2] = 1
    logits[0, 4, 0, 0] = logits[0, 7, 0, 0] = float("nan")
    labels = subject(Call("upsample_argmax", {"input": logits, "size": (3, 3)}))
    assert labels.tolist() == [[[4, 2, 2], [2, 2, 2], [2, 2, 2]]]


@to_labels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced_channels_last"])
@pytest.mark.parametrize("channels", [1, 3, 4, 6, 19, 33, 256])
@pytest.mark.parametrize("size", [(9, 13), (17, 25), (3, 97)])
def test_labels_of_ties(subject, dtype, size, channels, layout):
    """Few values, which blend exactly in every type: each label is that of the reference."""
    generator = torch.Generator().manual_seed(channels)
    logits = torch.randint(-2, 3, (3, channels, 3, 4), generator=generator).double()
    odd = torch.randint(0, 60, logits.shape, generator=generator)
    logits[odd % 2 == 0] *= -1  # zeros too
    logits[1:][odd[1:] == 0] = torch.nan
    logits[2:][odd[2:] == 1] = -torch.inf
    logits[2:][odd[2:] == 2] = torch.inf
    x = LAYOUTS[layout](logits.to(subject.device, dtype))
    right = reference.upsample(logits, size).argmax(1)
    assert torch.equal(subject(Call("upsample_argmax", {"input": x, "size": size})).cpu(), right)


@to_labels
def test_labels_of_the_largest_numbers(subject, dtype):
    """Their differences are infinite where the type's largest is float32's."""
    call = upsample_argmax(1, 19, (5, 6), (17, 21)).to(dtype, subject.device)
    logits = call.arguments["input"]
    logits *= torch.finfo(dtype).max / logits.abs().max()
    check_result(call, subject(call))


@to_labels
def test_last_label(subject):
    logits = torch.zeros(1, 256, 2, 2, device=subject.device)
    logits[:, 255] = 1
    labels = subject(Call("upsample_argmax", {"input": logits, "size": (3, 3)}))
    assert labels.tolist() == [[[255] * 3] * 3]
