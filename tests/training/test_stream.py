import signal
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from training.fakes import FakeDataset

from fassd.data.transforms import TrainTransform
from fassd.io.images import ImageError
from fassd.models.preprocess import normalize
from fassd.training.recipe import Recipe
from fassd.training.stream import SampleStream, divide, loader

PLAIN = TrainTransform((30, 41), (1.0, 1.0), 0.0)
RANDOM = TrainTransform((24, 32), (0.5, 2.0), 0.5, 0.3)


def numbers_of(stream, count):
    return [int(stream[n].path.stem.removeprefix("picture")) for n in range(count)]


def test_every_picture_comes_once_per_epoch_in_changing_order():
    stream = SampleStream([FakeDataset(7)], PLAIN, seed=1)
    seen = numbers_of(stream, 21)
    epochs = [seen[:7], seen[7:14], seen[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_samples_of_a_recipe_are_augmented_as_it_says():
    settings = {"crop": (64, 96), "scale": (0.6, 1.7), "flip": 0.1, "rotate": True, "jitter": 0.2}
    settings |= {"gamma": 0.3, "blur": 0.4, "focus": 0.7}
    recipe = Recipe(**settings, seed=3, shares=[2.0], stages=[[5, [16, 24]]], batch=4)
    stream = SampleStream.of(recipe, [FakeDataset(7)])
    assert stream.transform == TrainTransform(**settings, padding=(0, 0, 0))
    assert stream.earlier == [(20, replace(stream.transform, crop=(16, 24)))]
    assert (stream.seed, stream.shares) == (3, [2.0])


def test_a_sample_depends_on_seed_and_number_alone():
    first, second = (SampleStream([FakeDataset(7)], RANDOM, seed=1) for _ in range(2))
    for number in (9, 3, 9):
        one, other = first[number], second[number]
        assert one.path == other.path
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.labels, other.labels)
    other = SampleStream([FakeDataset(7)], RANDOM, seed=2)
    assert any(first[n].image.tobytes() != other[n].image.tobytes() for n in range(3))


def test_augmentation_differs_from_epoch_to_epoch():
    stream = SampleStream([FakeDataset(1)], RANDOM, seed=1)
    assert stream[0].image.tobytes() != stream[1].image.tobytes()


def test_pictures_arrive_normalised_with_their_labels():
    dataset = FakeDataset(1)
    item = SampleStream([dataset], TrainTransform((30, 41), (1, 1), 0), seed=0)[0]
    np.testing.assert_array_equal(item.image, normalize(dataset[0].image))
    np.testing.assert_array_equal(item.labels, dataset[0].labels)
    assert item.skipped == []


def test_the_next_picture_takes_the_place_of_a_broken_one():
    stream = SampleStream([FakeDataset(5, broken=[2])], PLAIN, seed=4)
    seen = [stream[n] for n in range(5)]
    place = [n for n in range(5) if seen[n].skipped]
    assert len(place) == 1
    assert seen[place[0]].skipped == ["picture2.png: is damaged or truncated"]
    assert Counter(item.path.stem for item in seen)["picture2"] == 0
    assert seen[place[0]].path == seen[(place[0] + 1) % 5].path


def test_nothing_that_can_be_read_is_an_error():
    stream = SampleStream([FakeDataset(3, broken=[0, 1, 2])], PLAIN, seed=4)
    with pytest.raises(ImageError, match=r"none of 3 pictures in a row .* picture\d.png"):
        stream[0]


@pytest.mark.parametrize("shares", [[1, 1], [1, 3], [2.5, 0.5, 7], [367, 1600, 41, 41]])
def test_each_data_set_has_its_share_of_any_run_and_its_samples_in_order(shares):
    found = [divide(number, shares) for number in range(4000)]
    for source, share in enumerate(shares):
        mine = [own for which, own in found if which == source]
        assert mine == list(range(len(mine)))
        counts = np.cumsum([which == source for which, _ in found])
        expected = np.arange(1, 4001) * share / sum(shares)
        assert np.abs(counts - expected).max() < len(shares)


def test_pictures_of_all_data_sets_come_equally_often_without_shares():
    sets = [FakeDataset(3), FakeDataset(6, shift=4)]
    stream = SampleStream(sets, PLAIN, seed=1)
    for first in (0, 9, 18):
        items = [stream[number] for number in range(first, first + 9)]
        of_first = [item.path.stem for item in items if item.labels[item.labels < 255].max() < 4]
        others = [item.path.stem for item in items if item.labels.min() >= 4]
        assert sorted(of_first) == ["picture0", "picture1", "picture2"]
        assert sorted(others) == [f"picture{index}" for index in range(6)]


def test_shares_say_how_often_a_data_set_is_seen():
    stream = SampleStream([FakeDataset(3), FakeDataset(6, shift=4)], PLAIN, 1, [3, 1])
    late = [stream[number].labels.min() >= 4 for number in range(40)]
    assert sum(late) == 10 and [sum(late[i : i + 4]) for i in range(0, 40, 4)] == [1] * 10


def test_a_broken_picture_is_replaced_from_its_own_data_set():
    sets = [FakeDataset(2), FakeDataset(3, broken=[0, 1], shift=4)]
    stream = SampleStream(sets, PLAIN, seed=1, shares=[1, 2])
    items = [stream[number] for number in range(6)]
    second = [item for item in items if item.labels.min() >= 4]
    assert len(second) == 4 and {item.path.stem for item in second} == {"picture2"}


def collected(stream, steps, batch, accumulate, **settings):
    """Paths by [step][micro-batch]."""
    return [
        [[path.stem for path in part.paths] for part in parts]
        for parts in loader(stream, steps, batch, accumulate, **settings)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_take_consecutive_samples_from_any_place(workers):
    stream = SampleStream([FakeDataset(5)], PLAIN, seed=3)
    due = [stream[n].path.stem for n in range(16)]
    found = collected(stream, range(1, 4), 4, 2, workers=workers)
    assert found == [[due[4 * s : 4 * s + 2], due[4 * s + 2 : 4 * s + 4]] for s in (1, 2, 3)]


def test_processes_share_each_micro_batch():
    stream = SampleStream([FakeDataset(9)], PLAIN, seed=3)
    whole = collected(stream, range(2), 8, 2)
    shares = [collected(stream, range(2), 8, 2, rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(2):
        for part in range(2):
            assert shares[0][step][part] + shares[1][step][part] == whole[step][part]


def test_batches_are_tensors():
    (parts,) = loader(SampleStream([FakeDataset(3)], RANDOM, 0), range(1), 2, 1)
    (part,) = parts
    assert part.images.shape == (2, 3, 24, 32) and part.images.dtype == torch.float32
    assert part.labels.shape == (2, 24, 32) and part.labels.dtype == torch.uint8


def test_workers_never_hear_the_signals_that_stop_a_run():
    """From their first moment: one that comes before they are ready would end them."""

    class Listening(FakeDataset):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            sample.path = signal.pthread_sigmask(signal.SIG_BLOCK, [])
            return sample

    stop = {signal.SIGINT, signal.SIGTERM}
    stream = SampleStream([Listening(3)], PLAIN, seed=0)
    (parts,) = loader(stream, range(1), 1, 1, workers=1)
    assert parts[0].paths[0] >= stop
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & stop
