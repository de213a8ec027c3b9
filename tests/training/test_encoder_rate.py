"""Freezing the encoder, and a learning rate of its own."""

import pytest
import torch
from training.streets import interrupt, same_run, small_recipe

from fassd.models import create_model
from fassd.models.encoder import import_timm
from fassd.models.variants import full_name
from fassd.training.learner import _encoder
from fassd.training.loop import StoppedError, Trainer


def states(trainer):
    """The encoder's tensors, and the others', as they are."""
    everything = {key: value.clone() for key, value in trainer.learner.model.state_dict().items()}
    encoder = {key: value for key, value in everything.items() if key.startswith("base.")}
    return encoder, {key: everything[key] for key in everything.keys() - encoder.keys()}


def moved(before, after):
    return [key for key in before if not torch.equal(before[key], after[key])]


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_frozen_encoder_stays_as_it_is_statistics_and_all(card, tmp_path, accelerate, optimizer):
    recipe = small_recipe(
        freeze=2, steps=2, val_every=0, accelerate=accelerate, optimizer=optimizer, ema=None,
        weight_decay=0.1, learning_rate=0.01, clip=1.0,
    )  # fmt: skip
    trainer = Trainer(recipe, card, tmp_path)
    encoder, rest = states(trainer)
    trainer.run()
    encoder_after, rest_after = states(trainer)
    assert moved(encoder, encoder_after) == []
    weights = [key for key in rest if key.endswith("conv.weight")]
    assert len(weights) > 5 and set(weights) <= set(moved(rest, rest_after))


@pytest.mark.parametrize(("freeze", "kept"), [(2, True), (1, False)])
def test_statistics_of_a_frozen_encoder_are_not_measured(card, tmp_path, freeze, kept):
    recipe = small_recipe(freeze=freeze, steps=2, val_every=2, ema=0.9, statistics=1)
    trainer = Trainer(recipe, card, tmp_path)
    before = {key: value.clone() for key, value in trainer.learner.evaluated.state_dict().items()}
    trainer.run()
    after = trainer.learner.evaluated.state_dict()
    found = [key for key in moved(before, after) if key.endswith("running_mean")]
    assert any(key.startswith("base.") for key in found) != kept
    assert any(not key.startswith("base.") for key in found)
    momenta = {m.momentum for m in trainer.learner.evaluated.modules() if hasattr(m, "momentum")}
    assert momenta == {0.1}


def test_the_encoder_learns_after_the_frozen_steps(card, tmp_path):
    trainer = Trainer(small_recipe(freeze=2, steps=4, val_every=0, ema=None), card, tmp_path)
    encoder, _ = states(trainer)
    trainer.run()
    after, _ = states(trainer)
    assert set(moved(encoder, after)) >= {key for key in encoder if key.endswith("weight")}


@pytest.mark.parametrize("accelerate", [False, True])
def test_a_frozen_encoder_gives_the_rest_the_gradients_it_has(card, tmp_path, accelerate):
    """By hand: the encoder in evaluation mode, one step of SGD for all else."""
    recipe = small_recipe(
        freeze=1, steps=2, val_every=0, optimizer="sgd", momentum=0.0, learning_rate=0.1, clip=None,
        ema=None, accelerate=accelerate, channels_last=False, weight_decay=0.0, power=0.0,
        crop=[128, 256],
    )  # fmt: skip
    trainer = Trainer(recipe, card, tmp_path)
    torch.manual_seed(recipe.seed)
    model = create_model(recipe.model).train()
    model.base.eval()
    parts = next(iter(trainer._batches()))
    trainer.learner.loss(model(parts[0].images), parts[0].labels).backward()
    trainer.learner.learn(parts, 0)
    for name, p in trainer.learner.model.named_parameters():
        own = model.get_parameter(name)
        if name.startswith("base."):
            assert torch.equal(p, own)
            continue
        # Rounding takes a value over an activation's kink here and there: a change of 1e-6 of the
        # pictures alone moves gradients by a hundredth.
        off = (p - (own - 0.1 * own.grad)).norm() / (0.1 * own.grad).norm()
        assert off < (0.03 if accelerate else 1e-3), name


def test_the_encoder_may_have_a_rate_of_its_own(card, tmp_path):
    settings = {
        "optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1, "clip": None, "ema": None,
        "steps": 2, "val_every": 0, "weight_decay": 0.0,
    }  # fmt: skip
    steps = []
    for number, rate in enumerate((1.0, 0.25)):
        trainer = Trainer(small_recipe(encoder_rate=rate, **settings), card, tmp_path / str(number))
        before = states(trainer)
        trainer.learner.learn(next(iter(trainer._batches())), 0)
        after = states(trainer)
        steps.append([
            {key: two[key] - one[key] for key in one if key.endswith("conv.weight")}
            for one, two in zip(before, after, strict=True)
        ])  # fmt: skip
    (encoder, rest), (slower, same) = steps
    assert len(encoder) > 5 and len(rest) > 5
    for key, step in encoder.items():
        torch.testing.assert_close(slower[key], 0.25 * step, rtol=1e-3, atol=1e-7)
    for key, step in rest.items():
        torch.testing.assert_close(same[key], step)


def test_a_resumed_run_is_the_same_with_a_rate_of_its_own_and_a_frozen_start(card, tmp_path):
    recipe = small_recipe(encoder_rate=0.1, freeze=3)
    Trainer(recipe, card, tmp_path / "whole").run()
    trainer = Trainer(recipe, card, tmp_path / "cut")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(trainer, "forward", 2, patch)
        with pytest.raises(StoppedError):
            trainer.run()
    Trainer(None, card, tmp_path / "cut", resume=True).run()
    same_run(tmp_path / "whole", tmp_path / "cut")


def test_of_timms_encoders_the_convolutions_behind_learn():
    import_timm()
    model = create_model(full_name("fassd_net", "resnet18d"), 3)
    frozen = {id(parameter) for parameter in _encoder(model).parameters()}
    assert not frozen & {id(parameter) for parameter in model.base.project.parameters()}
    assert frozen == {id(parameter) for parameter in model.base.body.parameters()}
