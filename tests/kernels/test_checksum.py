"""The checksum by which edits of weights are noticed: every byte of every tensor counts."""

from __future__ import annotations

import pytest
import torch

from fassd_kernels.ops import checksum, pieces_of


@pytest.mark.parametrize("view", ["whole", "every other", "transposed", "expanded"])
def test_every_value_counts(view: str) -> None:
    values = torch.zeros(3, 5, 7, 9)
    values[0, 0] = 1
    seen = {
        "whole": values,
        "every other": values[:, 1::2, :, ::2],
        "transposed": values.transpose(1, 3)[1:],
        "expanded": values[:, :, :1].expand(3, 5, 7, 9),
    }[view]
    pieces = pieces_of([seen])
    plain = checksum(pieces)
    assert plain == checksum(pieces) != checksum(pieces_of([seen, seen]))
    for place in range(0, seen.numel(), 13):
        spot = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), seen.shape))
        value = seen[spot].clone()
        seen[spot] = -value - 1
        assert checksum(pieces) != plain, spot
        seen[spot] = value
    assert checksum(pieces) == plain


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096, 5001])
def test_every_byte_and_the_size_count(size: int) -> None:
    values = torch.zeros(size + 1, dtype=torch.uint8)
    pieces = pieces_of([values[:size]])
    plain = checksum(pieces)
    assert plain != checksum(pieces_of([values]))
    for place in {*range(min(size, 130)), *range(max(0, size - 130), size)}:
        values[place] = 1
        assert checksum(pieces) != plain, place
        values[place] = 0
    values[size] = 1
    assert checksum(pieces) == plain


@pytest.mark.parametrize("kept", [0, 200])
def test_a_storage_freed_or_cut_is_refused(kept: int) -> None:
    tensor = torch.ones(64)
    tensor.untyped_storage().resize_(kept)
    with pytest.raises(RuntimeError, match="storage"):
        pieces_of([tensor])
