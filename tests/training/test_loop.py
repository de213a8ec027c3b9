"""What a run does, and what it says of bad data, settings and numbers."""

import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from training.fakes import write_card
from training.streets import (
    Recorder,
    at_step,
    rows,
    same_run,
    scene,
    small_recipe,
    write_cityscapes,
)

from fassd.data import SegmentationDataset, load_card
from fassd.io.images import ImageError, write_image
from fassd.models import create_model, load_checkpoint
from fassd.models.preprocess import normalize
from fassd.models.weights import shipped
from fassd.training import evaluate
from fassd.training import state as files
from fassd.training.loop import DivergedError, Trainer
from fassd.training.recipe import RecipeError

pytestmark = pytest.mark.usefixtures("one_thread")


def run(card, folder, **settings):
    """A run to its end: its reporter, and the last evaluation."""
    recorder = Recorder()
    return recorder, Trainer(small_recipe(**settings), card, folder, reporter=recorder).run()


def blank(masks):
    """Overwrite masks with ones that label nothing."""
    for mask in masks:
        Image.fromarray(np.zeros((64, 128), np.uint8)).save(mask)


# ------------------------------------------------------------------------------------- what it does


def test_leaves_weights_logs_and_pictures(whole):
    folder, recorder, evaluation = whole
    assert [int(row["step"]) for row in rows(folder / "log.csv")] == list(range(1, 7))
    assert all(np.isfinite(float(row["loss"])) for row in rows(folder / "log.csv"))
    scores = rows(folder / "val.csv")
    assert [int(row["step"]) for row in scores] == [3, 6]
    assert float(scores[-1]["miou"]) == pytest.approx(evaluation.scores.miou, rel=1e-8)
    assert set(recorder.scores) == {3, 6} and recorder.first == 0
    with Image.open(folder / "pictures" / "step-000006.jpg") as picture:
        assert picture.width > 3 * 64
    assert list((folder / "tensorboard").iterdir())
    assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]


def test_the_weights_it_leaves_are_those_it_scored(whole, card):
    folder, _, evaluation = whole
    model = create_model("fassd_net_l2")
    load_checkpoint(model, folder / "last.safetensors")
    again = evaluate(model, SegmentationDataset(card, "val"))
    # Validation ran the fused modules; a few pixels on a boundary may fall the other way.
    assert again.scores.miou == pytest.approx(evaluation.scores.miou, abs=2e-3)
    best = max(float(row["miou"]) for row in rows(folder / "val.csv"))
    load_checkpoint(model, folder / "best.safetensors")
    assert evaluate(model, SegmentationDataset(card, "val")).scores.miou == pytest.approx(
        best, abs=2e-3
    )


def test_learns(card, tmp_path):
    settings = {"steps": 40, "batch": 6, "val_every": 0, "save_every": 40, "log_every": 1}
    recorder, _ = run(card, tmp_path, jitter=0.0, **settings)
    losses = [recorder.losses[step] for step in sorted(recorder.losses)]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_one_optimizer_step_is_the_textbooks(card, tmp_path):
    """SGD with momentum and weight decay on everything, by hand, from the same micro-batches."""
    recipe = small_recipe(
        optimizer="sgd", learning_rate=0.1, weight_decay=0.01, steps=2, clip=None, ema=None,
        batch=4, accumulate=2, accelerate=False, channels_last=False,
    )  # fmt: skip
    trainer = Trainer(recipe, card, tmp_path)
    torch.manual_seed(recipe.seed)
    model = create_model(recipe.model).train()
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for step, parts in enumerate(trainer._batches()):
        model.zero_grad()
        for part in parts:
            (trainer.learner.loss(model(part.images), part.labels) / len(parts)).backward()
        rate = 0.1 * (1 - (step + 1) / 2) ** 0.9
        with torch.no_grad():
            for name, p in model.named_parameters():
                velocity[name] = 0.9 * velocity[name] + p.grad + 0.01 * p
                p -= rate * velocity[name]
    trainer.run()
    for name, p in trainer.learner.model.named_parameters():
        torch.testing.assert_close(p, model.get_parameter(name), rtol=1e-4, atol=1e-6)


def test_the_average_follows_the_weights(card, tmp_path):
    recipe = small_recipe(ema=0.9, steps=3, val_every=0, accelerate=False)
    trainer = Trainer(recipe, card, tmp_path)
    history, update = [], trainer.learner.average.update_parameters

    def watch(model):
        update(model)
        history.append({key: value.clone() for key, value in model.state_dict().items()})

    trainer.learner.average.update_parameters = watch
    trainer.run()
    expected = history[0]
    for count, state in enumerate(history[1:], start=1):
        share = 1 - min(0.9, (1 + count) / (10 + count))
        expected = {
            key: value.lerp(state[key], share) if value.is_floating_point() else state[key]
            for key, value in expected.items()
        }
    saved = load_file(tmp_path / "last.safetensors")
    for key, value in expected.items():
        torch.testing.assert_close(saved[key], value, rtol=1e-5, atol=1e-6)


def test_statistics_of_averaged_weights_are_those_of_the_next_batches(card, tmp_path):
    """Before each validation; a run that was cut off there takes the same ones."""
    settings = {"ema": 0.9, "statistics": 3, "steps": 4, "val_every": 2, "jitter": 0.0}
    trainer = Trainer(small_recipe(**settings), card, tmp_path / "whole")
    trainer.run()
    saved = load_file(tmp_path / "whole" / "last.safetensors")
    model = create_model("fassd_net_l2")
    load_checkpoint(model, tmp_path / "whole" / "last.safetensors")
    first = model.base[0].train()
    first.norm.reset_running_stats()
    moments = []
    for (part,) in trainer._batches(4 + 3):
        values = first.conv(part.images).movedim(1, 0).flatten(1)
        moments.append((values.mean(1), values.var(1)))
    assert len(moments) == 3
    mean, variance = (torch.stack(values).mean(0) for values in zip(*moments, strict=True))
    torch.testing.assert_close(saved["base.0.norm.running_mean"], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(saved["base.0.norm.running_var"], variance, rtol=1e-4, atol=1e-5)

    cut = Trainer(small_recipe(**settings), card, tmp_path / "cut")
    cut._validate = lambda logs: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):  # killed between its checkpoint and the validation
        cut.run()
    Trainer(None, card, tmp_path / "cut", resume=True).run()
    same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_follows_the_same_curve_with_and_without_fused_modules(card, tmp_path, precision):
    """As closely as float32 follows float64: a sign that flips at a ReLU is another gradient.

    By SGD: AdamW's first steps follow the signs of gradients, those near 0 too.
    """
    curves = []
    settings = {"model": "fassd_net", "precision": precision, "log_every": 1, "steps": 4}
    settings |= {"optimizer": "sgd", "learning_rate": 0.02}
    for accelerate in (False, True):
        folder = tmp_path / str(accelerate)
        recorder, _ = run(card, folder, accelerate=accelerate, **settings)
        curves.append(list(recorder.losses.values()))
    np.testing.assert_allclose(
        curves[0][:1], curves[1][:1], rtol=1e-2 if precision == "bfloat16" else 1e-6
    )
    np.testing.assert_allclose(curves[0], curves[1], rtol=3e-2)


def test_accumulated_micro_batches_are_one_batch_where_batch_norm_is_left_out(card, tmp_path):
    """In eval mode a batch of 4 and two micro-batches of 2 have the same gradient."""
    gradients = []
    for accumulate in (1, 2):
        recipe = small_recipe(batch=4, accumulate=accumulate, accelerate=False)
        trainer = Trainer(recipe, card, tmp_path / str(accumulate))
        trainer.learner.model.eval()
        parts = next(trainer._batches())
        pictures = torch.tensor(4.0)
        losses = [trainer.learner._backward(part, pictures) for part in parts]
        grads = torch.cat([p.grad.flatten() for p in trainer.learner.model.parameters()])
        gradients.append((sum(losses), grads))
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-3, atol=1e-5)


def test_starts_from_weights_by_name_for_another_number_of_classes(tmp_path):
    write_card(tmp_path / "data", [("low", (1, 2, 3)), ("high", (4, 5, 6))])
    card_file = tmp_path / "data" / "card.yaml"
    card_file.write_text(card_file.read_text().replace("{val: val}", "{train: train}"))
    image, labels = scene(0)
    write_image(tmp_path / "data/train/a.png", image)
    write_image(tmp_path / "data/train/labels/a.png", (labels > 9).astype(np.uint8))
    recipe = small_recipe(weights="synthetic", steps=1, batch=1)
    trainer = Trainer(recipe, load_card(tmp_path / "data"), tmp_path / "run")
    stem = load_file(shipped("fassd_net_l2", "synthetic"))["base.0.conv.weight"]
    assert torch.equal(trainer.learner.model.state_dict()["base.0.conv.weight"], stem.float())
    assert trainer.learner.model.finalConv.out_channels == 2
    assert trainer.run() is None


def test_starts_from_given_weights_but_for_a_head_of_other_classes(card, tmp_path):
    torch.manual_seed(0)
    source = create_model("fassd_net_l2", num_classes=7)
    save_file(source.state_dict(), tmp_path / "start.safetensors")
    recorder = Recorder()
    recipe = small_recipe(weights=str(tmp_path / "start.safetensors"))
    trainer = Trainer(recipe, card, tmp_path / "run", reporter=recorder)
    own = trainer.learner.model.state_dict()
    for key, value in source.state_dict().items():
        assert key.startswith("finalConv") or torch.equal(own[key], value)
    assert "left as they were: finalConv.weight" in recorder.messages[0]


def test_convolutions_begin_as_the_authors_and_the_encoder_lies_over_them(card, tmp_path):
    """Of the encoder the tensors of equal shape alone."""
    torch.manual_seed(0)
    source = create_model("fassd_net_l2").base.state_dict()
    source["0.conv.weight"] = torch.ones(5, 3, 3, 3)
    save_file(source, tmp_path / "encoder.safetensors")
    recorder = Recorder()
    recipe = small_recipe(init="xavier", weights=str(tmp_path / "encoder.safetensors"))
    trainer = Trainer(recipe, card, tmp_path / "run", reporter=recorder)
    model = trainer.learner.model
    for key, value in source.items():
        assert torch.equal(model.base.state_dict()[key], value) == (key != "0.conv.weight")
    assert "left as they were: base.0.conv.weight" in recorder.messages[0]
    fresh = [("base.0", model.base[0].conv)]
    fresh += [(n, m) for n, m in model.named_modules() if n[:4] != "base" and hasattr(m, "stride")]
    for name, convolution in fresh:
        if not isinstance(convolution, torch.nn.Conv2d) or convolution.weight.numel() < 400:
            continue
        out, into, height, width = convolution.weight.shape
        deviation = (2 / ((out + into) * height * width)) ** 0.5
        assert convolution.weight.std().item() == pytest.approx(deviation, rel=0.15), name
    bias = model.finalConv.bias.abs()
    assert bias.min() > 0 and bias.max() <= model.finalConv.in_channels**-0.5


def test_stages_have_crops_of_their_own(card, tmp_path):
    stages = [[2, [64, 64]], [3, [64, 96]]]
    trainer = Trainer(small_recipe(stages=stages, steps=5, val_every=0), card, tmp_path)
    sizes = [tuple(part.images.shape[2:]) for (part,) in trainer._batches()]
    assert sizes == [(64, 64), (64, 64), (64, 96), (64, 128), (64, 128)]
    trainer.run()
    assert trainer.step == 5


@pytest.mark.parametrize(("pad", "color"), [("black", (0, 0, 0)), ("mean", (124, 116, 104))])
def test_what_lies_around_small_pictures(card, tmp_path, pad, color):
    recipe = small_recipe(pad=pad, scale=[0.25, 0.25], jitter=0.0)
    ((part,), *_) = Trainer(recipe, card, tmp_path)._batches()
    expected = torch.from_numpy(normalize(np.full((1, 1, 3), color, np.uint8)))
    around = (part.labels == 255)[:, None].expand_as(part.images)
    assert around.float().mean() > 0.8
    outside = torch.where(around, part.images, expected)
    assert (outside == expected).float().mean() > 0.99  # the others are ignored in the picture


def test_a_run_from_before_there_were_ways_to_pad_goes_on_as_it_began(card, tmp_path):
    Trainer(small_recipe(steps=2, val_every=0), card, tmp_path).run()
    tensors, facts, _ = files.latest_state(tmp_path)
    facts["recipe"] = {k: v for k, v in facts["recipe"].items() if k not in ("init", "pad")}
    files.save_state(tmp_path, tensors, facts)
    assert Trainer(None, card, tmp_path, resume=True).recipe == small_recipe(steps=2, val_every=0)


def test_deterministic_runs_are_the_same_and_leave_no_trace(card, tmp_path):
    for name in ("one", "two"):
        recipe = small_recipe(deterministic=True, steps=2, val_every=0)
        trainer = Trainer(recipe, card, tmp_path / name)
        seen = []
        take = trainer.learner._backward
        trainer.learner._backward = lambda *a, take=take, seen=seen: (
            seen.append(torch.are_deterministic_algorithms_enabled()) or take(*a)
        )
        trainer.run()
        assert seen == [True, True]
        assert not torch.are_deterministic_algorithms_enabled()
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


# --------------------------------------------------------------------------------------- bad input


def spoil(trainer, step, value, after=False):
    """Write `value` into a weight, before or after a step."""
    weight = next(trainer.learner.model.parameters()).data
    at_step(trainer, step, lambda: weight[0].fill_(value), after)


@pytest.mark.parametrize(("every", "saved"), [(2, 4), (100, None)])
def test_a_loss_that_is_no_number_stops_and_keeps_what_was_before(card, tmp_path, every, saved):
    settings = {"log_every": every, "save_every": every, "val_every": 0}
    trainer = Trainer(small_recipe(learning_rate=1e-3, **settings), card, tmp_path)
    spoil(trainer, 5, float("nan"))
    with pytest.raises(DivergedError, match=r"the loss of step 5 is nan, at a learning rate of"):
        trainer.run()
    assert [row["step"] for row in rows(tmp_path / "log.csv")] == ["1", "2", "3", "4"]
    assert (tmp_path / "checkpoint.safetensors").exists() == bool(saved)
    if saved:
        tensors, facts, _ = files.latest_state(tmp_path)
        assert facts["step"] == saved
        assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_weights_that_are_no_numbers_are_not_saved(card, tmp_path):
    """The loss of step 4 is sound, what the step leaves is not, and step 4 is saved."""
    trainer = Trainer(small_recipe(val_every=0), card, tmp_path)
    spoil(trainer, 4, float("inf"), after=True)
    with pytest.raises(DivergedError, match="step 4 left weights that are not finite"):
        trainer.run()
    assert files.latest_state(tmp_path)[1]["step"] == 2
    assert len(rows(tmp_path / "log.csv")) == 4


def test_a_val_split_without_labels_does_not_end_the_run(tmp_path):
    card = write_cityscapes(tmp_path / "data")
    blank((tmp_path / "data").glob("gtFine/val/*/*"))
    recorder, evaluation = run(card, tmp_path / "run")
    assert evaluation is None
    assert any(text.startswith("no score: ") for text in recorder.messages)
    assert files.latest_state(tmp_path / "run")[1]["step"] == 6


def test_a_validation_of_nan_is_told_and_counted_and_training_goes_on(card, tmp_path):
    """Once by overflow, once by a statistic; it is not tried again for ever when resumed."""
    recipe = small_recipe(steps=4, val_every=2, val_pictures=1, accelerate=False)
    trainer = Trainer(recipe, card, tmp_path, reporter=(recorder := Recorder()))
    statistic = trainer.learner.evaluated.get_buffer("base.0.norm.running_var")

    def overflow(module, inputs, output):
        return output if module.training or trainer.step != 2 else output * float("nan")

    trainer.learner.evaluated.register_forward_hook(overflow)
    at_step(trainer, 4, lambda: statistic.fill_(float("nan")), after=True)
    assert trainer.run() is None
    first, second = (text for text in recorder.messages if text.startswith("no score: "))
    assert "overflow torch.float32 (step 2; so far 1 of the run's" in first
    assert "its base.0.norm.running_var is not finite (step 4; so far 2 of the run's" in second
    assert [int(row["step"]) for row in rows(tmp_path / "log.csv")] == [1, 2, 3, 4]
    assert files.latest_state(tmp_path)[1]["unscored"] == 2
    resumed = Trainer(None, card, tmp_path, resume=True)
    assert resumed.run() is None and resumed.unscored == 2


def test_training_pictures_without_labels_are_told(tmp_path):
    card = write_cityscapes(tmp_path / "data", train=2, val=1)
    blank((tmp_path / "data").glob("gtFine/train/*/*"))
    recorder, _ = run(card, tmp_path / "run", steps=3, val_every=0, accelerate=False)
    told = [text for text in recorder.messages if "have learnt nothing: every pixel" in text]
    assert [text[:12] for text in told] == ["steps 1 to 2", "steps 3 to 3"]


def test_a_crop_that_is_too_small_for_the_network(card, tmp_path):
    with pytest.raises(RecipeError, match=r"crop \[32, 64\]: the input must be at least 57x57"):
        run(card, tmp_path, crop=[32, 64])


@pytest.mark.parametrize("accelerate", [False, True])
def test_too_few_values_for_batch_norm(card, tmp_path, accelerate):
    with pytest.raises(
        RecipeError, match=r"1 x 64x64 pixels; take a larger batch, a smaller acc.*larger crop"
    ):
        run(card, tmp_path, crop=[64, 64], batch=1, accelerate=accelerate)


def test_float16_trains_with_a_scaled_loss_and_resumes_its_scale(card, tmp_path):
    recipe = small_recipe(precision="float16", steps=4, val_every=0, save_every=2)
    trainer = Trainer(recipe, card, tmp_path)
    trainer.learner.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.run()
    assert all(np.isfinite(float(row["loss"])) for row in rows(tmp_path / "log.csv"))
    resumed = Trainer(None, card, tmp_path, resume=True)
    assert resumed.learner.scaler.get_scale() == trainer.learner.scaler.get_scale() != 65536.0


def test_gradients_that_float16_cannot_hold_stop_the_run(card, tmp_path):
    recipe = small_recipe(precision="float16", val_every=0)
    trainer = Trainer(recipe, card, tmp_path)
    trainer.learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-20)
    with pytest.raises(DivergedError, match="overflow float16 at any scale"):
        trainer.run()


def test_pictures_that_do_not_read_are_skipped_and_named(tmp_path):
    card = write_cityscapes(tmp_path / "data")
    broken = sorted((tmp_path / "data").glob("leftImg8bit/train/*/*"))[2]
    broken.write_bytes(broken.read_bytes()[:200])
    wrong = sorted((tmp_path / "data").glob("gtFine/val/*/*"))[1]
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(wrong)
    recorder, evaluation = run(card, tmp_path / "run")
    for path in (broken, wrong):
        assert any(text.startswith("skipped: ") and str(path) in text for text in recorder.messages)
    assert evaluation.count == 2 and len(evaluation.skipped) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_what_was_learnt_is_saved_when_no_picture_can_be_read_any_more(card, tmp_path, workers):
    data, away = tmp_path / "data", tmp_path / "away"
    settings = {"steps": 8, "workers": workers, "val_every": 0, "save_every": 100, "log_every": 1}
    _, whole = run(card, tmp_path / "whole", **settings)
    recipe, moving = small_recipe(**settings), write_cityscapes(data)
    trainer = Trainer(recipe, moving, tmp_path / "run", reporter=Recorder())
    at_step(trainer, 2, lambda: (data / "leftImg8bit/train").rename(away), after=True)
    message = r"none of 6 .*leftImg8bit.png.*Step \d+ is saved; --resume"
    others = multiprocessing.active_children()
    with pytest.raises(ImageError, match=message) as error:
        trainer.run()
    # While the traceback is there, which keeps what was read from.
    assert error.tb and multiprocessing.active_children() == others
    assert 2 <= trainer.step < 8  # workers have read ahead
    assert len(rows(tmp_path / "run/log.csv")) == trainer.step
    away.rename(data / "leftImg8bit/train")
    resumed = Trainer(None, moving, tmp_path / "run", resume=True, reporter=Recorder())
    assert resumed.step == trainer.step
    assert torch.equal(resumed.run().matrix, whole.matrix)


def test_a_picture_without_labels_and_smaller_than_the_crop(tmp_path):
    card = write_cityscapes(tmp_path / "data", train=2)
    blank(sorted((tmp_path / "data").glob("gtFine/train/*/*"))[:1])
    settings = {"crop": [96, 160], "steps": 3, "batch": 2, "scale": [0.3, 0.5]}
    recorder, _ = run(card, tmp_path / "run", **settings)
    assert all(np.isfinite(list(recorder.losses.values())))


def test_a_batch_that_cannot_be_shared(card, tmp_path, monkeypatch):
    monkeypatch.setattr("fassd.training.loop.world_size", lambda: 4)
    with pytest.raises(RecipeError, match="a multiple of 4 processes x accumulate"):
        Trainer(small_recipe(batch=6), card, tmp_path)
