"""Weights of rare classes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training.streets import Recorder, rows, small_recipe, write_cityscapes, write_coarse

from fassd.data.groups import label_space
from fassd.io.palette import IGNORE
from fassd.training.balance import count_labels, weights_of
from fassd.training.loop import Trainer
from fassd.training.loss import BootstrappedCrossEntropy, CrossEntropy, RegionLoss


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_weights_are_powers_of_shares_with_a_mean_of_one_over_the_pixels(balance):
    counts = np.array([800, 150, 50, 0])
    weights = weights_of(counts, 4, [], balance)
    powers = (counts[:3] / 1000) ** -balance
    np.testing.assert_allclose(weights[:3] / powers, np.full(3, weights[0] / powers[0]))
    np.testing.assert_allclose((counts * weights).sum() / 1000, 1)
    assert weights[3] == 1 and weights[0] < 1 < weights[2]


def test_a_groups_pixels_count_in_parts_for_its_members():
    weights = weights_of(np.array([500, 100, 0, 400]), 3, [(1, 2)], 1.0)
    sizes = np.array([500, 300, 200])
    shares = sizes / 1000
    every = np.array([*(1 / shares), (1 / shares[1:]).mean()])
    every /= (every * [500, 100, 0, 400]).sum() / 1000
    np.testing.assert_allclose(weights, every)


def test_nothing_labelled_weighs_nothing_more():
    assert weights_of(np.zeros(5), 5, [], 1.0) == [1.0] * 5


@pytest.mark.parametrize("bootstrapped", [False, True])
def test_weights_multiply_the_losses_of_pixels(bootstrapped):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 3, (2, 8, 8), generator=generator)
    labels[0, :3] = IGNORE
    weights = [0.5, 2.0, 3.0]
    plain = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    factors = torch.tensor([*weights, *[0.0] * 253], dtype=torch.float64)[labels]
    if bootstrapped:
        loss = BootstrappedCrossEntropy(10, 100.0, weights=weights)
        hardest = [(plain * factors)[n].flatten().topk(10).values.mean() for n in range(2)]
        expected = torch.stack(hardest).mean()
    else:
        loss = CrossEntropy(weights=weights)
        counted = (labels != IGNORE).flatten(1).sum(1)
        expected = ((plain * factors).flatten(1).sum(1) / counted).mean()
    found = RegionLoss(loss)(logits, labels)
    torch.testing.assert_close(found, expected)
    both = found, expected
    ours, theirs = (torch.autograd.grad(each, logits, retain_graph=True)[0] for each in both)
    torch.testing.assert_close(ours, theirs)


def test_a_run_weighs_by_what_it_trains_on_and_keeps_that(card, tmp_path):
    recipe = small_recipe(balance=0.5, steps=2, val_every=0, auxiliary=0.4)
    recorder = Recorder()
    trainer = Trainer(recipe, card, tmp_path / "run", reporter=recorder)
    counts = count_labels(trainer.train_sets[0])
    by_hand = sum(np.bincount(s.labels.ravel(), minlength=256)[:255] for s in trainer.train_sets[0])
    np.testing.assert_array_equal(counts, by_hand)
    weights = weights_of(counts, 19, [], 0.5)
    assert trainer.learner.weights == weights
    names = trainer.space.class_names
    assert recorder.messages == [
        "balance: counting the labels of 6 pictures",
        f"balance: pixels weigh from {min(weights):.3g} ({names[weights.index(min(weights))]}) to "
        f"{max(weights):.3g} ({names[weights.index(max(weights))]})",
    ]
    for loss in (trainer.learner.loss, trainer.learner.loss_of_heads):
        base = getattr(loss, "base", loss)
        torch.testing.assert_close(base.weights[:19], torch.tensor(weights))
    trainer.run()
    plain = Trainer(small_recipe(steps=2, val_every=0, auxiliary=0.4), card, tmp_path / "plain")
    plain.run()
    first = [float(rows(tmp_path / name / "log.csv")[0]["loss"]) for name in ("run", "plain")]
    assert first[0] != first[1] and plain.learner.weights is None
    again = Trainer(None, card, tmp_path / "run", resume=True)
    assert again.learner.weights == weights


def test_several_data_sets_count_by_their_shares(tmp_path):
    cards = [write_cityscapes(tmp_path / "a", train=2, val=1), write_coarse(tmp_path / "b", 2, 1)]
    trainer = Trainer(small_recipe(balance=1.0, shares=[3, 1]), cards, tmp_path / "run")
    one, other = (count_labels(dataset) for dataset in trainer.train_sets)
    seen = 3 * one / one.sum() + other / other.sum()
    groups = label_space(cards).groups
    assert trainer.learner.weights == weights_of(seen, 19, groups, 1.0)
    assert len(trainer.learner.weights) == 19 + len(groups)


def test_no_balance_reads_nothing(card, tmp_path, monkeypatch):
    monkeypatch.setattr("fassd.training.balance.count_labels", lambda _: 1 / 0)
    Trainer(small_recipe(), card, tmp_path)
    with pytest.raises(ZeroDivisionError):
        Trainer(small_recipe(balance=0.1), card, tmp_path)
