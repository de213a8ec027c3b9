"""How long a run is: epochs in place of steps, and an early end."""

from dataclasses import replace

import pytest
from training.streets import Recorder, rows, small_recipe, write_cityscapes

from fassd.training import loop
from fassd.training.loop import Trainer
from fassd.training.recipe import RecipeError, load_recipe


def test_epochs_become_steps_when_the_run_begins(card, tmp_path):
    recorder = Recorder()
    recipe = small_recipe().replace(epochs=1.5)
    trainer = Trainer(recipe, card, tmp_path / "run", reporter=recorder)
    assert trainer.recipe.steps == round(1.5 * 6 / 2) and trainer.recipe.epochs is None
    assert recorder.messages == ["1.5 epochs of 6 pictures are 4 steps"]
    trainer.run()
    assert len(rows(tmp_path / "run" / "log.csv")) == 4
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == trainer.recipe
    assert Trainer(None, card, tmp_path / "run", resume=True).recipe == trainer.recipe
    again = Trainer(recipe, card, tmp_path / "run", resume=True)
    assert again.recipe == trainer.recipe and again.changes == []
    longer = Trainer(recipe.replace(epochs=2), card, tmp_path / "run", resume=True)
    assert longer.changes == ["after step 4: steps 6 instead of 4"]


def test_epochs_are_at_least_a_step(card, tmp_path):
    assert Trainer(small_recipe().replace(epochs=0.01), card, tmp_path).recipe.steps == 1


def test_steps_and_epochs_take_each_others_place(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("preset: demo\nepochs: 30\n")
    recipe = load_recipe(file)
    assert recipe.epochs == 30
    shorter = recipe.replace(steps=70)
    assert (shorter.steps, shorter.epochs) == (70, None)
    with pytest.raises(RecipeError, match="epochs take the place of steps; give one of them"):
        recipe.replace(steps=70, epochs=3)
    file.write_text("steps: 3\nepochs: 30\n")
    with pytest.raises(RecipeError, match=r"mine.yaml: epochs take the place of steps"):
        load_recipe(file)
    with pytest.raises(RecipeError, match=r"epochs .*greater than 0, got 0"):
        recipe.replace(epochs=0)


def scored(monkeypatch, scores):
    """Validations with these mean IoUs, one after the other."""
    real, left = loop.validate, list(scores)

    def validate(*arguments):
        evaluation, panel = real(*arguments)
        scores = evaluation.scores
        scores = replace(scores, iou=(left.pop(0),) * len(scores.iou))
        return replace(evaluation, scores=scores), panel

    monkeypatch.setattr(loop, "validate", validate)
    return left


def test_a_run_ends_after_validations_that_are_no_better(card, tmp_path, monkeypatch):
    recipe = small_recipe(steps=8, val_every=1, patience=3)
    left = scored(monkeypatch, [0.2, 0.4, 0.3, 0.4, 0.1, 0.9, 0.9, 0.9])
    recorder = Recorder()
    trainer = Trainer(recipe, card, tmp_path / "run", reporter=recorder)
    trainer.run()
    assert trainer.step == 5 and left == [0.9, 0.9, 0.9]
    assert recorder.messages[-1] == "no better score in 3 validations: the run ends, early"
    assert len(rows(tmp_path / "run" / "log.csv")) == 5 == len(rows(tmp_path / "run" / "val.csv"))
    again = Trainer(None, card, tmp_path / "run", resume=True)
    again.run()
    assert again.step == 5 and left == [0.9, 0.9, 0.9]
    longer = Trainer(again.recipe.replace(patience=None), card, tmp_path / "run", resume=True)
    longer.run()
    assert longer.step == 8 and left == []


def test_a_resumed_run_counts_on(card, tmp_path, monkeypatch):
    recipe = small_recipe(steps=4, val_every=1, patience=3)
    left = scored(monkeypatch, [0.4, 0.3, 0.2, 0.1])
    trainer = Trainer(recipe, card, tmp_path)
    real = trainer._train_step

    def train_step(*arguments):
        if trainer.step == 2:
            raise OSError("gone")
        real(*arguments)

    trainer._train_step = train_step
    with pytest.raises(OSError, match="gone"):
        trainer.run()
    again = Trainer(None, card, tmp_path, resume=True)
    assert again.stale == 1
    again.run()
    assert again.stale == 3 and left == []


def test_a_run_that_gets_better_goes_on(card, tmp_path, monkeypatch):
    scored(monkeypatch, [0.1, 0.2, 0.1, 0.3])
    trainer = Trainer(small_recipe(steps=4, val_every=1, patience=2), card, tmp_path)
    trainer.run()
    assert trainer.step == 4


def test_patience_needs_validations(tmp_path):
    with pytest.raises(RecipeError, match="patience must be None without val_every, got 3"):
        small_recipe(patience=3, val_every=0)
    card = write_cityscapes(tmp_path / "data", train=2, val=1)
    alone = type(card)(**{**vars(card), "splits": {"train": card.splits["train"]}})
    with pytest.raises(RecipeError, match="patience needs a split val"):
        Trainer(small_recipe(patience=3), alone, tmp_path / "run")


def test_the_main_process_alone_says_when_a_run_ends(card, tmp_path, monkeypatch):
    """After --resume the others have its count of validations, which they do not go on with."""
    trainer = Trainer(small_recipe(steps=4, val_every=1, patience=1), card, tmp_path)
    trainer.stale = 1
    assert trainer._gave_up()
    monkeypatch.setattr(loop, "is_main", lambda: False)
    assert not trainer._gave_up()
