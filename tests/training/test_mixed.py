"""Runs on several data sets at once, of which one has coarser classes."""

import csv
from dataclasses import replace

import pytest
import torch
from training.streets import Recorder, at_step, rows, same_run, small_recipe, write_coarse

from fassd.data import SegmentationDataset
from fassd.data.card import CardError
from fassd.evaluation.evaluate import evaluate
from fassd.models import create_model, info_of, load_checkpoint
from fassd.training.loop import StoppedError, Trainer
from fassd.training.recipe import RecipeError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    return write_coarse(tmp_path_factory.mktemp("coarse"))


@pytest.fixture(scope="module")
def mixed(card, coarse, tmp_path_factory):
    """A run on both without interruption, its reporter and its trainer."""
    folder = tmp_path_factory.mktemp("mixed") / "run"
    recorder = Recorder()
    trainer = Trainer(recipe(), [card, coarse], folder, reporter=recorder)
    trainer.run()
    return folder, recorder, trainer


def recipe(**changes):
    return small_recipe(**{"steps": 4, "val_every": 2, "shares": [1, 1], **changes})


def test_learns_the_first_ones_classes_and_scores_each_by_its_own(mixed, card, coarse):
    folder, recorder, trainer = mixed
    network = create_model("fassd_net_l2")
    load_checkpoint(network, folder / "last.safetensors")
    assert info_of(network).class_names == tuple(card.class_names)
    tables = [rows(folder / name) for name in ("val.csv", "val.2.csv")]
    columns = [[key for key in table[0] if key.startswith("iou/")] for table in tables]
    assert columns[0] == [f"iou/{name}" for name in card.class_names]
    assert columns[1] == ["iou/flat", "iou/built", "iou/sky", "iou/other"]
    for data, table, evaluation in zip((card, coarse), tables, trainer.evaluations, strict=True):
        assert [row["step"] for row in table] == ["2", "4"]
        again = evaluate(network, SegmentationDataset(data, "val")).scores
        assert float(table[-1]["miou"]) == pytest.approx(again.miou, abs=5e-3)
        assert float(table[-1]["miou"]) == pytest.approx(evaluation.scores.miou, rel=1e-8)
    means = [
        (float(one["miou"]) + float(other["miou"])) / 2 for one, other in zip(*tables, strict=True)
    ]
    assert [best for _, best in recorder.scores.values()] == [True, means[1] > means[0]]
    assert trainer.best == pytest.approx(max(means), rel=1e-7)
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    assert pictures[2:] == ["step-000004.2.jpg", "step-000004.jpg"]


def test_batches_hold_classes_and_groups_by_their_shares(card, coarse, tmp_path):
    trainer = Trainer(recipe(batch=4, shares=[1, 3]), [card, coarse], tmp_path)
    assert trainer.space.groups == tuple(
        tuple(card.class_names.index(name) for name in names)
        for names in coarse.covers
        if len(names) > 1
    )
    for (part,) in trainer._batches():
        grouped = [bool(((labels >= 19) & (labels < 255)).any()) for labels in part.labels]
        assert sum(grouped) == 3
        assert part.labels[part.labels < 255].max() <= 21
        of_groups = torch.cat([own for own, it in zip(part.labels, grouped, strict=True) if it])
        assert of_groups[of_groups < 19].unique().tolist() == [10]  # sky is one class of the list


def test_the_loss_of_a_batch_is_that_of_sums_of_probabilities(card, coarse, tmp_path):
    settings = {"loss": "cross_entropy", "accelerate": False, "channels_last": False}
    trainer = Trainer(recipe(**settings), [card, coarse], tmp_path)
    ((part,), *_) = trainer._batches()
    model = trainer.learner.model.train()
    probabilities = model(part.images).double().softmax(1)
    members = [*((index,) for index in range(19)), *trainer.space.groups]
    summed = torch.stack([probabilities[:, group].sum(1) for group in members], 1)
    expected = []
    for picture, labels in zip(summed, part.labels.long(), strict=True):
        counted = labels != 255
        chosen = picture.movedim(0, -1)[counted].gather(1, labels[counted][:, None])
        expected.append(-chosen.log().mean())
    loss, labelled = trainer.learner.learn([part], 0)
    assert labelled == 2
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)


def test_goes_on_to_the_last_bit(mixed, card, coarse, tmp_path):
    trainer = Trainer(recipe(), [card, coarse], tmp_path)
    at_step(trainer, 3, lambda: setattr(trainer._stop, "made", True))
    with pytest.raises(StoppedError):
        trainer.run()
    Trainer(None, [card, coarse], tmp_path, resume=True).run()
    same_run(tmp_path, mixed[0])
    assert (tmp_path / "val.2.csv").read_bytes() == (mixed[0] / "val.2.csv").read_bytes()


def test_goes_on_with_the_same_data_alone(mixed, card, coarse):
    folder = mixed[0]
    with pytest.raises(RecipeError, match=r"shares must be one number for each of the 1 data sets"):
        Trainer(None, card, folder, resume=True)
    other = replace(coarse, covers=(("road",), *coarse.covers[1:]))
    with pytest.raises(RecipeError, match=r"the data of the run in .* had labels"):
        Trainer(None, [card, other], folder, resume=True)


def test_a_finished_run_of_one_data_set_takes_no_second(whole, card, coarse):
    with pytest.raises(RecipeError, match=r"had pictures 6, now \[6, 4\]"):
        Trainer(None, [card, coarse], whole[0], resume=True)


def test_a_data_set_without_a_val_split_is_only_learnt(card, coarse, tmp_path):
    splits = {"train": card.splits["train"]}
    trainer = Trainer(recipe(steps=2), [replace(card, splits=splits), coarse], tmp_path)
    assert trainer.run().class_names == tuple(coarse.class_names)
    with (tmp_path / "val.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["miou"]) == pytest.approx(trainer.best, rel=1e-8)
    assert not (tmp_path / "val.2.csv").exists()


@pytest.mark.parametrize("shares", [[1], [1, 2, 3], []])
def test_a_share_for_each(card, coarse, tmp_path, shares):
    with pytest.raises(RecipeError, match=r"shares must be one number for each of the 2 data sets"):
        Trainer(recipe(shares=shares), [card, coarse], tmp_path)


def test_classes_that_do_not_fit_are_named(card, coarse, tmp_path):
    with pytest.raises(CardError, match=r"card 'cityscapes' .* its class 'road' is 'road', which"):
        Trainer(recipe(), [coarse, card], tmp_path)
    with pytest.raises(CardError, match="at least one card"):
        Trainer(recipe(shares=None), [], tmp_path)


def test_two_data_sets_of_the_same_classes(card, tmp_path):
    """As generated and real Cityscapes: no groups, and the loss of classes alone."""
    trainer = Trainer(recipe(steps=1, shares=None), [card, card], tmp_path)
    assert trainer.learner.loss.groups == []
    trainer.run()
    assert len(trainer.evaluations) == 2
    assert torch.equal(trainer.evaluations[0].matrix, trainer.evaluations[1].matrix)
