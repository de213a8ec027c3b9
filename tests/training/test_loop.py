import csv
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training.streets import (
    MOMENTS,
    Recorder,
    double_precision,
    feed_doubles,
    interrupt,
    small_recipe,
    write_cityscapes,
)

from fassd.data import SegmentationDataset
from fassd.models import create_model, load_checkpoint
from fassd.training import evaluate
from fassd.training import state as files
from fassd.training.loop import DivergedError, StoppedError, Trainer
from fassd.training.recipe import RecipeError
from fassd.training.state import StateError

RUN = Path(__file__).with_name("run_trainer.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums over threads round by their number; another test may have changed it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp("cityscapes"))


@pytest.fixture(scope="module")
def whole(card, tmp_path_factory):
    """A run without interruption: its folder and what it reported."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    recorder = Recorder()
    evaluation = Trainer(small_recipe(), card, folder, reporter=recorder).run()
    return folder, recorder, evaluation


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same_run(one, other):
    """The same bytes of logs, the same bits of every tensor that is kept."""
    for name in ("log.csv", "val.csv", "recipe.yaml"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("last.safetensors", "best.safetensors", "checkpoint.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), (name, key)


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
    recorder = Recorder()
    recipe = small_recipe(steps=40, batch=6, val_every=0, save_every=40, log_every=1, jitter=0.0)
    Trainer(recipe, card, tmp_path / "run", reporter=recorder).run()
    losses = [recorder.losses[step] for step in sorted(recorder.losses)]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_one_optimizer_step_is_the_textbooks(card, tmp_path):
    """SGD with momentum and weight decay on everything, by hand, from the same micro-batches."""
    recipe = small_recipe(
        optimizer="sgd", learning_rate=0.1, weight_decay=0.01, steps=2, clip=None, ema=None,
        batch=4, accumulate=2, accelerate=False, channels_last=False,
    )  # fmt: skip
    trainer = Trainer(recipe, card, tmp_path / "run")
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
    trainer = Trainer(recipe, card, tmp_path / "run")
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
    saved = load_file(tmp_path / "run" / "last.safetensors")
    for key, value in expected.items():
        torch.testing.assert_close(saved[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_follows_the_same_curve_with_and_without_fused_modules(card, tmp_path, precision):
    curves = []
    for accelerate in (False, True):
        recorder = Recorder()
        recipe = small_recipe(
            model="fassd_net", accelerate=accelerate, precision=precision, log_every=1, steps=4
        )
        Trainer(recipe, card, tmp_path / str(accelerate), reporter=recorder).run()
        curves.append(list(recorder.losses.values()))
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-2 if precision == "bfloat16" else 1e-4)


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
    from training.fakes import write_card
    from training.streets import scene

    from fassd.data import load_card
    from fassd.io.images import write_image
    from fassd.models.weights import shipped

    write_card(tmp_path / "data", [("low", (1, 2, 3)), ("high", (4, 5, 6))])
    card_file = tmp_path / "data" / "card.yaml"
    card_file.write_text(card_file.read_text().replace("{val: val}", "{train: train}"))
    image, labels = scene(0)
    write_image(tmp_path / "data/train/a.png", image)
    write_image(tmp_path / "data/train/labels/a.png", (labels > 9).astype(np.uint8))
    recipe = small_recipe(weights="synthetic", steps=1, batch=1)
    trainer = Trainer(recipe, load_card(tmp_path / "data"), tmp_path / "run")
    stem = load_file(shipped("fassd_net_l2"))["base.0.conv.weight"]
    assert torch.equal(trainer.learner.model.state_dict()["base.0.conv.weight"], stem.float())
    assert trainer.learner.model.finalConv.out_channels == 2
    assert trainer.run() is None


def test_starts_from_given_weights_but_for_a_head_of_other_classes(card, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    source = create_model("fassd_net_l2", num_classes=7)
    save_file(source.state_dict(), tmp_path / "start.safetensors")
    recorder = Recorder()
    recipe = small_recipe(weights=str(tmp_path / "start.safetensors"))
    trainer = Trainer(recipe, card, tmp_path / "run", reporter=recorder)
    own = trainer.learner.model.state_dict()
    for key, value in source.state_dict().items():
        assert key.startswith("finalConv") or torch.equal(own[key], value)
    assert "misshapen: finalConv.weight" in recorder.messages[0]


# ----------------------------------------------------------------------------------- interruptions


def test_a_killed_run_resumes_as_if_nothing_had_happened(whole, card, tmp_path):
    """kill -9 in the middle of step 5, after the checkpoint of step 4."""
    folder = tmp_path / "run"
    command = [sys.executable, str(RUN), str(card.root), str(folder), "kill", "5"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    killed = subprocess.run(command, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(rows(folder / "log.csv")) == 4 and (folder / "val.csv").stat().st_size > 0
    recorder = Recorder()
    Trainer(None, card, folder, resume=True, reporter=recorder).run()
    assert recorder.first == 4
    same_run(whole[0], folder)


def test_rows_of_steps_that_are_done_again_do_not_come_twice(whole, card, tmp_path):
    """Killed between a flush of the log and the checkpoint: rows 5 and 6 are there already."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    stop_at(card, folder_of_four := tmp_path / "four", 4)
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors"):
        shutil.copy(folder_of_four / name, folder / name)
    Trainer(None, card, folder, resume=True).run()
    same_run(whole[0], folder)


def stop_at(card, folder, step, **settings):
    """Run until Ctrl-C comes in the middle of `step`."""
    trainer = Trainer(small_recipe(**settings), card, folder)
    take = trainer._train_step

    def step_with_ctrl_c(*arguments):
        if trainer.step == step - 1:
            signal.raise_signal(signal.SIGINT)
        return take(*arguments)

    trainer._train_step = step_with_ctrl_c
    with pytest.raises(StoppedError, match=f"after step {step}; saved in .*--resume"):
        trainer.run()


@pytest.mark.parametrize("step", [1, 3, 5])
def test_ctrl_c_saves_and_resuming_gives_the_same_run(whole, card, tmp_path, step):
    before = signal.getsignal(signal.SIGINT)
    stop_at(card, tmp_path / "run", step)
    assert len(rows(tmp_path / "run" / "log.csv")) == step
    Trainer(None, card, tmp_path / "run", resume=True).run()
    same_run(whole[0], tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stop_at_any_moment_is_saved_before_it_is_promised(card, tmp_path, monkeypatch, moment):
    """In a young run, of which there is no checkpoint yet."""
    step = 2 if moment in ("validation", "writing") else random.Random(moment).randint(1, 2)
    recipe = small_recipe(val_every=2, save_every=100, log_every=100, accelerate=False)
    trainer = Trainer(recipe, card, tmp_path / "run")
    interrupt(trainer, moment, step, monkeypatch)
    with pytest.raises(StoppedError, match=f"stopped after step {step}; saved in .*--resume"):
        trainer.run()
    assert files.latest_state(tmp_path / "run")[1]["step"] == step
    assert len(rows(tmp_path / "run" / "log.csv")) == step


def test_a_stop_in_the_last_validation_leaves_it_for_later(card, tmp_path, monkeypatch):
    recipe = small_recipe(steps=2, val_every=0, val_pictures=1, accelerate=False)
    trainer = Trainer(recipe, card, tmp_path / "run")
    interrupt(trainer, "validation", 2, monkeypatch)
    with pytest.raises(StoppedError, match="stopped after step 2"):
        trainer.run()
    assert Trainer(None, card, tmp_path / "run", resume=True).run().count == 1
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_a_signal_that_comes_twice_at_once_is_one_request(card, tmp_path, monkeypatch):
    """As `timeout`, schedulers and torchrun send it; a later one stops without saving."""
    for first, error in ((True, StoppedError), (False, KeyboardInterrupt)):
        trainer = Trainer(small_recipe(), card, tmp_path / str(first))
        interrupt(trainer, "forward", 1, monkeypatch)
        interrupt(trainer, "backward", 1, monkeypatch)
        if not first:
            monkeypatch.setattr("fassd.training.stop.SAME_REQUEST_S", 0.0)
        with pytest.raises(error):
            trainer.run()
        assert (tmp_path / str(first) / "checkpoint.safetensors").exists() == first


def test_a_reporter_that_cannot_speak_in_the_middle_does_not_end_the_run(
    card, tmp_path, monkeypatch
):
    def message(text):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    (recorder := Recorder()).message = message
    trainer = Trainer(small_recipe(), card, tmp_path / "run", reporter=recorder)
    interrupt(trainer, "backward", 1, monkeypatch)
    with pytest.raises(StoppedError):
        trainer.run()


def test_a_stop_that_cannot_be_saved_promises_nothing(card, tmp_path, monkeypatch):
    trainer = Trainer(small_recipe(), card, tmp_path / "run")
    interrupt(trainer, "optimizer", 1, monkeypatch)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(OSError, match=r"could not write the checkpoint: .*there is no checkpoint"):
        trainer.run()


def test_two_runs_do_not_share_a_folder(card, tmp_path):
    folder, refused = tmp_path / "run", []
    other = Trainer(small_recipe(seed=7), card, folder)

    class Rival(Recorder):
        def stepped(self, step, loss, learning_rate):
            for begin in (other.run, lambda: Trainer(None, card, folder, resume=True)):
                if begin == other.run or (folder / "checkpoint.safetensors").exists():
                    with pytest.raises(StateError, match="is in use by another run") as error:
                        begin()
                    refused.append((step, str(folder) in str(error.value)))

    Trainer(small_recipe(steps=4, val_every=0), card, folder, reporter=Rival()).run()
    assert refused == [(2, True), (4, True), (4, True)]
    assert [row["step"] for row in rows(folder / "log.csv")] == ["1", "2", "3", "4"]
    with pytest.raises(FileExistsError, match="--resume goes on"):
        other.run()  # made before the folder was used
    assert "seed: 5" in (folder / "recipe.yaml").read_text()


def test_a_run_that_another_has_overtaken_does_not_go_on(card, tmp_path):
    stop_at(card, tmp_path / "run", 3)
    first, second = (Trainer(None, card, tmp_path / "run", resume=True) for _ in range(2))
    first.step = 4
    first._save(final=True)
    with pytest.raises(StateError, match="another run has gone on in"):
        second.run()


def test_a_file_system_without_locks_does_not_keep_from_training(card, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"):
        Trainer(small_recipe(steps=1, val_every=0), card, tmp_path / "run").run()
    assert files.latest_step(tmp_path / "run") == 1


def test_what_changes_when_a_run_is_resumed_is_told_and_recorded(card, tmp_path):
    folder = tmp_path / "run"
    settings = {"val_every": 0, "val_pictures": 1, "accelerate": False}
    stop_at(card, folder, 3, **settings)
    recipe = small_recipe(steps=8, learning_rate=1e-4, **settings)
    trainer = Trainer(recipe, card, folder, resume=True, reporter=(recorder := Recorder()))
    changes = [
        "after step 3: learning_rate 0.0001 instead of 0.002",
        "after step 3: steps 8 instead of 6",
    ]
    assert recorder.messages == changes
    trainer._run = lambda logs: None  # killed before its first step
    trainer.run()
    Trainer(None, card, folder, resume=True).run()
    log = rows(folder / "log.csv")
    assert [int(row["step"]) for row in log] == list(range(1, 9))
    assert float(log[4]["learning_rate"]) == pytest.approx(1e-4 * (3 / 8) ** 0.9)
    assert (folder / "recipe.yaml").read_text().startswith("".join(f"# {c}\n" for c in changes))

    with pytest.raises(RecipeError, match="cannot go on with another batch; what may change is"):
        Trainer(recipe.replace(batch=4), card, folder, resume=True)
    with pytest.raises(RecipeError, match=r"steps must be above 8, .* got 7"):
        Trainer(recipe.replace(steps=7), card, folder, resume=True)


def test_a_run_keeps_its_threads_and_tells_of_others(card, tmp_path):
    recipe = small_recipe(threads=2)
    seen, trainer = [], Trainer(recipe, card, tmp_path / "run")
    interrupt_at_once = trainer.learner._forward

    def forward(images):
        seen.append(torch.get_num_threads())
        trainer._stop.made = True
        return interrupt_at_once(images)

    trainer.learner._forward = forward
    with pytest.raises(StoppedError):
        trainer.run()
    assert (seen, torch.get_num_threads()) == ([2], 1)
    for threads, told in ((2, []), (1, ["the run had 2 CPU threads before, now 1: its numbers"])):
        recorder = Recorder()
        changed = recipe.replace(threads=threads)
        trainer = Trainer(changed, card, tmp_path / "run", resume=True, reporter=recorder)
        trainer._run = lambda logs: None
        trainer.run()
        assert all(any(text in m for m in recorder.messages) for text in told)
        assert bool(recorder.messages) == bool(told)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(whole, card, tmp_path):
    stop_at(card, tmp_path / "run", 5)  # checkpoints of steps 5 and 4
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100_000])
    recorder = Recorder()
    Trainer(None, card, tmp_path / "run", resume=True, reporter=recorder).run()
    assert recorder.first == 4
    assert "checkpoint.safetensors is damaged and was passed over" in recorder.messages[0]
    same_run(whole[0], tmp_path / "run")


def test_a_full_disk_loses_nothing_and_does_not_stop_the_run(whole, card, tmp_path, monkeypatch):
    """Nothing at all can be written from step 3 to 5; the logs of these steps come later."""
    recorder = Recorder()
    trainer = Trainer(small_recipe(), card, tmp_path / "run", reporter=recorder)
    sync = os.fsync

    def full(handle):
        if 3 <= trainer.step <= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    def unwritable(path, image):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("fassd.training.logs.write_image", unwritable)
    trainer.run()
    told = " ".join(text for text in recorder.messages if "No space left" in text)
    for what in ("log.csv", "val.csv", "the checkpoint", "last.safetensors", "step-000003.jpg"):
        assert f"{what}" in told
    for name in ("log.csv", "val.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (whole[0] / name).read_bytes()
    assert files.latest_state(tmp_path / "run")[1]["step"] == 6
    # The weights of step 3 were not kept, so those of step 6 are the best that there are.
    assert {step: best for step, (_, best) in recorder.scores.items()} == {3: False, 6: True}
    assert (tmp_path / "run" / "best.safetensors").exists()
    # Saved before and after the last validation; what came before that is of step 2.
    assert not list((tmp_path / "run").glob(".*.part"))


def test_a_disk_that_is_full_at_the_end_is_an_error(card, tmp_path, monkeypatch):
    trainer = Trainer(small_recipe(steps=2, val_every=0), card, tmp_path / "run")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.run()


def test_nothing_to_resume_and_nothing_overwritten(whole, card, tmp_path):
    with pytest.raises(StateError, match="there is no checkpoint in it"):
        Trainer(None, card, tmp_path, resume=True)
    with pytest.raises(FileExistsError, match="--resume goes on"):
        Trainer(small_recipe(), card, whole[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_trainer_and_workers_saves(whole, card, tmp_path, number):
    """As a scheduler stops a job, and Ctrl-C in a terminal: every process of the group gets it."""
    folder = tmp_path / "run"
    settings = json.dumps({"workers": 2})
    command = [sys.executable, str(RUN), str(card.root), str(folder), "slow", settings]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (folder / "log.csv").exists() or len(rows(folder / "log.csv")) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, told = process.communicate(timeout=120)
    assert "StoppedError: stopped after step" in told
    assert 2 <= files.latest_state(folder)[1]["step"] < 6
    Trainer(None, card, folder, resume=True).run()
    # The recipe differs in its workers, the run does not.
    for name in ("log.csv", "val.csv"):
        assert (folder / name).read_bytes() == (whole[0] / name).read_bytes()


def test_ctrl_c_in_a_validation_leaves_it_for_later(whole, card, tmp_path):
    trainer = Trainer(small_recipe(), card, tmp_path / "run", reporter=(recorder := Recorder()))
    recorder.validating = lambda done, total: signal.raise_signal(signal.SIGINT)
    with pytest.raises(StoppedError, match="after step 3"):
        trainer.run()
    assert any("stopping after this step" in text for text in recorder.messages)
    Trainer(None, card, tmp_path / "run", resume=True).run()
    same_run(whole[0], tmp_path / "run")


def test_a_damaged_checkpoint_does_not_push_the_good_one_out(card, tmp_path):
    stop_at(card, tmp_path / "run", 5)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    checkpoint.write_bytes(b"")
    Trainer(None, card, tmp_path / "run", resume=True)._save(final=False)
    checkpoint.write_bytes(b"")
    assert files.latest_state(tmp_path / "run")[1]["step"] == 4


def test_a_run_that_died_before_its_first_checkpoint_can_begin_again(card, tmp_path):
    trainer = Trainer(small_recipe(), card, tmp_path / "run")

    def die(*_):
        raise MemoryError

    trainer.learner._backward = die
    with pytest.raises(MemoryError):
        trainer.run()
    assert (tmp_path / "run" / "recipe.yaml").exists()
    Trainer(small_recipe(steps=1, val_every=0), card, tmp_path / "run").run()
    assert len(rows(tmp_path / "run" / "log.csv")) == 1


def test_other_data_do_not_go_on_with_a_run(whole, tmp_path):
    more = write_cityscapes(tmp_path / "more", train=7)
    with pytest.raises(RecipeError, match="had pictures 6, now 7"):
        Trainer(None, more, whole[0], resume=True)


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


def spoil_weights_after_step_four(trainer):
    take = trainer._train_step

    def poison(*arguments):
        if trainer.step == 4:
            next(trainer.learner.model.parameters()).data[0] = float("nan")
        return take(*arguments)

    trainer._train_step = poison


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint_before(card, tmp_path):
    trainer = Trainer(small_recipe(learning_rate=1e-3), card, tmp_path / "run")
    spoil_weights_after_step_four(trainer)
    with pytest.raises(DivergedError, match=r"the loss of step 5 is nan, at a learning rate of"):
        trainer.run()
    tensors, facts, _ = files.latest_state(tmp_path / "run")
    assert facts["step"] == 4
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_weights_that_are_no_numbers_are_not_saved(card, tmp_path):
    """The loss of step 4 is sound, what the step leaves is not, and step 4 is saved."""
    trainer = Trainer(small_recipe(val_every=0), card, tmp_path / "run")
    take = trainer._train_step

    def poison(*arguments):
        stopped = take(*arguments)
        if trainer.step == 4:
            next(trainer.learner.model.parameters()).data[0] = float("inf")
        return stopped

    trainer._train_step = poison
    with pytest.raises(DivergedError, match="step 4 left weights that are not finite"):
        trainer.run()
    assert files.latest_state(tmp_path / "run")[1]["step"] == 2
    assert len(rows(tmp_path / "run" / "log.csv")) == 4


def test_losses_before_the_one_that_is_no_number_are_logged(card, tmp_path):
    trainer = Trainer(
        small_recipe(log_every=100, save_every=100, val_every=0), card, tmp_path / "r"
    )
    spoil_weights_after_step_four(trainer)
    with pytest.raises(DivergedError, match="step 5 is nan"):
        trainer.run()
    assert [row["step"] for row in rows(tmp_path / "r" / "log.csv")] == ["1", "2", "3", "4"]


def test_a_val_split_without_labels_does_not_end_the_run(tmp_path):
    card = write_cityscapes(tmp_path / "data")
    for mask in (tmp_path / "data").glob("gtFine/val/*/*"):
        Image.fromarray(np.zeros((64, 128), np.uint8)).save(mask)
    recorder = Recorder()
    assert Trainer(small_recipe(), card, tmp_path / "run", reporter=recorder).run() is None
    assert any(text.startswith("no score: ") for text in recorder.messages)
    assert files.latest_state(tmp_path / "run")[1]["step"] == 6


def test_a_validation_of_nan_is_told_and_counted_and_training_goes_on(card, tmp_path):
    """Once by overflow, once by a statistic; it is not tried again for ever when resumed."""
    recipe = small_recipe(steps=4, val_every=2, val_pictures=1, accelerate=False)
    trainer = Trainer(recipe, card, tmp_path / "run", reporter=(recorder := Recorder()))
    statistic = trainer.learner.evaluated.get_buffer("base.0.norm.running_var")

    def spoil(module, inputs, output):
        if module.training or trainer.step != 2:
            return output
        return output * float("nan")

    trainer.learner.evaluated.register_forward_hook(spoil)
    step = trainer._train_step

    def spoiled_step(*arguments):
        step(*arguments)
        if trainer.step == 4:
            statistic.fill_(float("nan"))

    trainer._train_step = spoiled_step
    assert trainer.run() is None
    first, second = (text for text in recorder.messages if text.startswith("no score: "))
    assert "overflows torch.float32 (step 2; so far 1 of the run's" in first
    assert "its base.0.norm.running_var is not finite (step 4; so far 2 of the run's" in second
    assert [int(row["step"]) for row in rows(tmp_path / "run" / "log.csv")] == [1, 2, 3, 4]
    assert files.latest_state(tmp_path / "run")[1]["unscored"] == 2
    resumed = Trainer(None, card, tmp_path / "run", resume=True)
    assert resumed.run() is None and resumed.unscored == 2


def test_training_pictures_without_labels_are_told(tmp_path):
    card = write_cityscapes(tmp_path / "data", train=2, val=1)
    for mask in (tmp_path / "data").glob("gtFine/train/*/*"):
        Image.fromarray(np.zeros((64, 128), np.uint8)).save(mask)
    recorder = Recorder()
    recipe = small_recipe(steps=3, val_every=0, accelerate=False)
    Trainer(recipe, card, tmp_path / "run", reporter=recorder).run()
    told = [text for text in recorder.messages if "have learnt nothing: every pixel" in text]
    assert [text[:12] for text in told] == ["steps 1 to 2", "steps 3 to 3"]


def test_a_crop_that_is_too_small_for_the_network(card, tmp_path):
    with pytest.raises(RecipeError, match=r"crop \[32, 64\]: the input must be at least 57x57"):
        Trainer(small_recipe(crop=[32, 64]), card, tmp_path / "run").run()


@pytest.mark.parametrize("accelerate", [False, True])
def test_too_few_values_for_batch_norm(card, tmp_path, accelerate):
    recipe = small_recipe(crop=[64, 64], batch=1, accelerate=accelerate)
    with pytest.raises(
        RecipeError, match=r"1 x 64x64 pixels; take a larger batch, a smaller acc.*larger crop"
    ):
        Trainer(recipe, card, tmp_path / "run").run()


def test_float16_trains_with_a_scaled_loss_and_resumes_its_scale(card, tmp_path):
    recipe = small_recipe(precision="float16", steps=4, val_every=0, save_every=2)
    trainer = Trainer(recipe, card, tmp_path / "run")
    trainer.learner.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.run()
    assert all(np.isfinite(float(row["loss"])) for row in rows(tmp_path / "run" / "log.csv"))
    resumed = Trainer(None, card, tmp_path / "run", resume=True)
    assert resumed.learner.scaler.get_scale() == trainer.learner.scaler.get_scale() != 65536.0


def test_gradients_that_float16_cannot_hold_stop_the_run(card, tmp_path):
    recipe = small_recipe(precision="float16", val_every=0)
    trainer = Trainer(recipe, card, tmp_path / "run")
    trainer.learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-20)
    with pytest.raises(DivergedError, match="overflow float16 at any scale"):
        trainer.run()


def test_pictures_that_do_not_read_are_skipped_and_named(tmp_path):
    card = write_cityscapes(tmp_path / "data")
    broken = sorted((tmp_path / "data").glob("leftImg8bit/train/*/*"))[2]
    broken.write_bytes(broken.read_bytes()[:200])
    wrong = sorted((tmp_path / "data").glob("gtFine/val/*/*"))[1]
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(wrong)
    recorder = Recorder()
    evaluation = Trainer(small_recipe(), card, tmp_path / "run", reporter=recorder).run()
    assert any(text.startswith("skipped: ") and str(broken) in text for text in recorder.messages)
    assert any(text.startswith("skipped: ") and str(wrong) in text for text in recorder.messages)
    assert evaluation.count == 2 and len(evaluation.skipped) == 1


def test_a_picture_without_labels_and_smaller_than_the_crop(tmp_path):
    card = write_cityscapes(tmp_path / "data", train=2)
    mask = sorted((tmp_path / "data").glob("gtFine/train/*/*"))[0]
    Image.fromarray(np.zeros((64, 128), np.uint8)).save(mask)  # unlabeled, all of it
    recorder = Recorder()
    recipe = small_recipe(crop=[96, 160], steps=3, batch=2, scale=[0.3, 0.5])
    Trainer(recipe, card, tmp_path / "run", reporter=recorder).run()
    assert all(np.isfinite(list(recorder.losses.values())))


def test_a_batch_that_cannot_be_shared(card, tmp_path, monkeypatch):
    monkeypatch.setattr("fassd.training.loop.world_size", lambda: 4)
    with pytest.raises(RecipeError, match="a multiple of 4 processes x accumulate"):
        Trainer(small_recipe(batch=6), card, tmp_path / "run")


# --------------------------------------------------------------------------------- many processes


SYNCHRONISED = {
    "batch": 4, "sync_bn": True, "steps": 2, "val_every": 2, "optimizer": "sgd",
    "learning_rate": 0.02, "accelerate": False,
}  # fmt: skip
OF_EACH = {
    "batch": 4, "steps": 2, "val_every": 0, "optimizer": "sgd", "learning_rate": 0.02,
    "accelerate": False, "ema": None,
}  # fmt: skip
RECIPES = {
    "sync 1": {**SYNCHRONISED, "accumulate": 1},
    "sync 2": {**SYNCHRONISED, "accumulate": 2},
    "scored": {"batch": 4, "steps": 2, "val_every": 2, "accelerate": False, "ema": 0.9},
    "of each": OF_EACH,
}


@pytest.fixture(scope="module")
def two(card, tmp_path_factory):
    """Where two processes left their runs: of `RECIPES`, and those of run_trainer.py in trouble."""
    folder = tmp_path_factory.mktemp("two")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(RUN), str(card.root), str(folder), "all", json.dumps(RECIPES),
    ]  # fmt: skip
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def run_one(card, folder, **settings):
    with double_precision():
        feed_doubles(Trainer(small_recipe(**settings), card, folder)).run()


def compare_runs(one, two, names):
    """To what a few steps make of float64's rounding; a wrong gradient differs by per cents."""
    losses = [[float(row["loss"]) for row in rows(folder / "log.csv")] for folder in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    # Of the checkpoint, so weights, averages and momenta.
    name = "checkpoint.safetensors"
    first, second = load_file(one / name), load_file(two / name)
    assert first.keys() == second.keys()
    compared = [key for key in first if not any(name in key for name in names)]
    assert len(compared) > len(first) / 2
    for key in compared:
        error = (first[key].double() - second[key].double()).norm()
        assert error <= 1e-5 * first[key].double().norm() + 1e-7, key


def test_trouble_in_one_of_two_processes_is_that_of_both(two):
    """A stop at any moment, which is saved before any leaves; NaN in a validation."""
    saved = {path.parent.name for path in two.glob("*/checkpoint.safetensors")}
    assert saved - set(RECIPES) == {*MOMENTS, "nan"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_equal_one_with_the_same_global_batch(two, card, tmp_path, accumulate):
    """With batch norm over both processes: losses, weights, statistics and scores."""
    name = f"sync {accumulate}"
    run_one(card, tmp_path, **RECIPES[name])
    compare_runs(tmp_path, two / name, names=())
    assert (tmp_path / "val.csv").read_bytes() == (two / name / "val.csv").read_bytes()


def test_what_two_processes_score_is_what_they_save(two, card):
    """Without synchronised batch norm each has statistics of its own; those of one are kept."""
    model = create_model("fassd_net_l2").double()
    load_checkpoint(model, two / "scored" / "last.safetensors")
    scores = evaluate(model, SegmentationDataset(card, "val")).scores
    (row,) = rows(two / "scored" / "val.csv")
    assert float(row["miou"]) == pytest.approx(scores.miou, rel=1e-8)


def test_without_sync_two_processes_equal_two_micro_batches(two, card, tmp_path):
    """Batch norm of each process sees its own half, as that of each micro-batch does."""
    run_one(card, tmp_path, **OF_EACH, accumulate=2)
    # Running statistics are those of one process here and of all micro-batches there.
    compare_runs(tmp_path, two / "of each", names=("running", "tracked"))
