"""Learning from another network's probabilities."""

import json

import pytest
import torch
from safetensors.torch import save_file
from training.streets import small_recipe

from fassd.models import NetworkInfo, create_model, load
from fassd.models.tensor_files import CheckpointError
from fassd.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def write_teacher(path, classes):
    """A network of random weights that tells its classes."""
    torch.manual_seed(9)
    model = create_model("fassd_net_l2", len(classes))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    info = NetworkInfo.of("fassd_net_l2", 2, classes)
    facts = {"fassd": json.dumps({"network": info.to_json()})}
    save_file(model.state_dict(), path, facts)


@pytest.mark.parametrize(("reordered", "fused"), [(False, True), (True, False)])
def test_the_loss_has_the_divergence_from_the_teacher(card, tmp_path, reordered, fused):
    path = tmp_path / "teacher.safetensors"
    classes = list(card.classes)
    order = [*range(5, 19), *range(5)] if reordered else list(range(19))
    write_teacher(path, [classes[index] for index in order])
    settings = {"teacher": str(path), "distillation": 0.7, "loss": "cross_entropy", "steps": 3}
    recipe = small_recipe(accelerate=fused, channels_last=False, **settings)
    trainer = Trainer(recipe, card, tmp_path / "run")
    ((part,), *_) = trainer._batches()
    part.labels[0, :20] = 255
    logits = trainer.learner.model.train()(part.images).double()
    plain = trainer.learner.loss(logits, part.labels).item()
    with torch.no_grad():
        wanted = load(path)(part.images).double().softmax(1)
    wanted = wanted[:, [order.index(index) for index in range(19)]]
    divergence = (wanted * (wanted.log() - logits.log_softmax(1))).sum(1)
    counted = part.labels != 255
    means = [d[c].mean().item() for d, c in zip(divergence, counted, strict=True)]
    loss, _ = trainer.learner.learn([part], 0)
    assert loss.item() == pytest.approx(plain + 0.7 * sum(means) / 2, rel=1e-3)
    trainer.run()
    after = trainer.learner.teacher.network.state_dict()
    for key, value in load(path).state_dict().items():
        assert torch.equal(value, after[key]), key


def test_a_teacher_of_other_classes_or_of_none_is_named(card, tmp_path):
    path = tmp_path / "teacher.safetensors"
    write_teacher(path, card.classes[:5])
    recipe = small_recipe(teacher=str(path))
    with pytest.raises(ValueError, match=r"teacher .*teacher.safetensors: the network has 5 class"):
        Trainer(recipe, card, tmp_path / "run")
    save_file(create_model("fassd_net_l2").state_dict(), path)
    with pytest.raises(CheckpointError, match=r"teacher.safetensors does not say which network"):
        Trainer(recipe, card, tmp_path / "run")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights file .*teacher.safetensors"):
        Trainer(recipe, card, tmp_path / "run")
