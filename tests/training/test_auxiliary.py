"""Heads that learn beside the network, and what is left of them."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from training.streets import at_step, same_run, small_recipe

from fassd.models import create_model
from fassd.training.auxiliary import WithHeads
from fassd.training.loop import StoppedError, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("name", "widths"), [("fassd_net_l2", [64, 64]), ("baseline", [160, 78])])
def test_each_stage_but_the_finest_has_a_head_of_its_width(name, widths):
    model = create_model(name, 5)
    with_heads = WithHeads(model, 5)
    assert [head.in_channels for head in with_heads.heads] == widths
    logits, coarse, finer = with_heads(torch.randn(2, 3, 96, 128))
    assert logits.shape == (2, 5, 96, 128)
    assert coarse.shape[:2] == finer.shape[:2] == (2, 5)
    assert coarse.shape[2] < finer.shape[2] < 96
    assert not any(block._forward_hooks for block in model.denseBlocksUp)


def recipe(**changes):
    return small_recipe(**{"auxiliary": 0.4, "loss": "cross_entropy", "steps": 3, **changes})


def test_the_loss_is_the_networks_and_the_weighted_heads(card, tmp_path):
    trainer = Trainer(recipe(accelerate=False, channels_last=False), card, tmp_path)
    ((part,), *_) = trainer._batches()
    trainer.learner.trained.train()
    expected = 0.0
    for weight, logits in zip((1, 0.4, 0.4), trainer.learner.trained(part.images), strict=True):
        rows = torch.arange(logits.shape[2]), torch.arange(logits.shape[3])
        step = 64 / logits.shape[2], 128 / logits.shape[3]
        ys, xs = (((i + 0.5) * s).long() for i, s in zip(rows, step, strict=True))
        labels = part.labels[:, ys][:, :, xs].long()
        for scores, truth in zip(logits, labels, strict=True):
            loss = F.cross_entropy(scores[None], truth[None], ignore_index=255)
            expected += weight * loss.item() / 2
    loss, _ = trainer.learner.learn([part], 0)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_heads_learn_and_are_kept_with_the_run_but_not_with_the_weights(card, tmp_path):
    trainer = Trainer(recipe(), card, tmp_path / "whole")
    before = [parameter.clone() for parameter in trainer.learner.trained.heads.parameters()]
    trainer.run()
    after = list(trainer.learner.trained.heads.parameters())
    assert len(after) == 4 and not any(map(torch.equal, before, after))
    assert set(load_file(tmp_path / "whole/last.safetensors")) == set(
        create_model("fassd_net_l2").state_dict()
    )
    cut = Trainer(recipe(), card, tmp_path / "cut")
    at_step(cut, 2, lambda: setattr(cut._stop, "made", True))
    with pytest.raises(StoppedError):
        cut.run()
    Trainer(None, card, tmp_path / "cut", resume=True).run()
    same_run(tmp_path / "whole", tmp_path / "cut")


def test_regions_train(card, tmp_path):
    trainer = Trainer(recipe(dice=0.5, lovasz=0.5, steps=2, val_every=0), card, tmp_path)
    trainer.run()
    assert trainer.learner.is_finite()
