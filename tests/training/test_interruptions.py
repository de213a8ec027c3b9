"""Runs that are stopped, cut off, resumed, disturbed by others or by a full disk."""

import errno
import multiprocessing
import os
import random
import shutil
import signal

import pytest
import torch
from training.streets import (
    MOMENTS,
    Recorder,
    at_step,
    interrupt,
    no_space,
    resume,
    rows,
    same_run,
    small_recipe,
    write_cityscapes,
)

from fassd.io.files import InUseError
from fassd.training import state as files
from fassd.training.loop import StoppedError, Trainer
from fassd.training.recipe import RecipeError
from fassd.training.state import StateError

pytestmark = pytest.mark.usefixtures("one_thread")


def stop_at(card, folder, step, **settings):
    """Run until Ctrl-C comes in the middle of `step`."""
    trainer = Trainer(small_recipe(**settings), card, folder)
    at_step(trainer, step, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(StoppedError, match=f"after step {step}; saved in .*--resume"):
        trainer.run()


# ------------------------------------------------------------------------------------------ stops


def test_ctrl_c_saves_and_resuming_gives_the_same_run(whole, card, tmp_path):
    """Before the first checkpoint; tests of resuming go on from later stops."""
    before = signal.getsignal(signal.SIGINT)
    stop_at(card, tmp_path, 1)
    assert len(rows(tmp_path / "log.csv")) == 1
    resume(card, tmp_path)
    same_run(whole[0], tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stop_at_any_moment_is_saved_before_it_is_promised(card, tmp_path, monkeypatch, moment):
    """In a young run, of which there is no checkpoint yet."""
    step = 2 if moment in ("validation", "writing") else random.Random(moment).randint(1, 2)
    recipe = small_recipe(val_every=2, save_every=100, log_every=100, accelerate=False)
    trainer = Trainer(recipe, card, tmp_path)
    interrupt(trainer, moment, step, monkeypatch)
    with pytest.raises(StoppedError, match=f"stopped after step {step}; saved in .*--resume"):
        trainer.run()
    assert files.latest_state(tmp_path)[1]["step"] == step
    assert len(rows(tmp_path / "log.csv")) == step


def test_ctrl_c_in_a_validation_leaves_it_for_later(whole, card, tmp_path):
    trainer = Trainer(small_recipe(), card, tmp_path, reporter=(recorder := Recorder()))
    recorder.validating = lambda done, total: signal.raise_signal(signal.SIGINT)
    with pytest.raises(StoppedError, match="after step 3"):
        trainer.run()
    assert any("stopping after this step" in text for text in recorder.messages)
    resume(card, tmp_path)
    same_run(whole[0], tmp_path)


def test_a_run_killed_after_a_validation_repeats_it_and_its_scores_stand_once(
    whole, card, tmp_path
):
    """Scores are written before the checkpoint that knows of them."""
    trainer = Trainer(small_recipe(), card, tmp_path, reporter=(recorder := Recorder()))

    def validated(*_):
        raise KeyboardInterrupt  # as SIGKILL, it saves nothing

    recorder.validated = validated
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert len(rows(tmp_path / "val.csv")) == 1
    resume(card, tmp_path)
    same_run(whole[0], tmp_path)


def test_a_stop_in_the_last_validation_leaves_it_for_later(card, tmp_path, monkeypatch):
    recipe = small_recipe(steps=2, val_every=0, val_pictures=1, accelerate=False)
    trainer = Trainer(recipe, card, tmp_path)
    interrupt(trainer, "validation", 2, monkeypatch)
    with pytest.raises(StoppedError, match="stopped after step 2"):
        trainer.run()
    assert Trainer(None, card, tmp_path, resume=True).run().count == 1
    assert (tmp_path / "best.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_trainer_and_workers_saves(whole, card, tmp_path, number):
    """As a scheduler stops a job, and Ctrl-C in a terminal: every process of the group gets it."""
    hit, others = [], multiprocessing.active_children()

    def stop_all():
        hit.extend(child for child in multiprocessing.active_children() if child not in others)
        for process in (*hit, multiprocessing.current_process()):
            os.kill(process.pid, number)

    trainer = Trainer(small_recipe(workers=2), card, tmp_path)
    at_step(trainer, 3, stop_all)
    with pytest.raises(StoppedError, match="after step 3"):
        trainer.run()
    assert len(hit) == 2
    resume(card, tmp_path)
    # The recipe differs in its workers, the run does not.
    for name in ("log.csv", "val.csv"):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()


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
    trainer = Trainer(small_recipe(), card, tmp_path, reporter=recorder)
    interrupt(trainer, "backward", 1, monkeypatch)
    with pytest.raises(StoppedError):
        trainer.run()


@pytest.mark.parametrize("stopped", [True, False])
def test_a_last_checkpoint_that_cannot_be_saved_is_an_error(card, tmp_path, monkeypatch, stopped):
    """At the end, or where a stop asks for it: nothing is promised."""
    trainer = Trainer(small_recipe(steps=2, val_every=0), card, tmp_path)
    if stopped:
        interrupt(trainer, "optimizer", 1, monkeypatch)
    monkeypatch.setattr(files, "_write", no_space)
    with pytest.raises(OSError, match=r"could not write the checkpoint: .*there is no checkpoint"):
        trainer.run()


def test_a_full_disk_loses_nothing_and_does_not_stop_the_run(whole, card, tmp_path, monkeypatch):
    """Nothing at all can be written from step 3 to 5; the logs of these steps come later."""
    trainer = Trainer(small_recipe(), card, tmp_path, reporter=(recorder := Recorder()))
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda h: no_space() if 3 <= trainer.step <= 5 else sync(h))
    monkeypatch.setattr("fassd.training.logs.write_image", no_space)
    trainer.run()
    told = " ".join(text for text in recorder.messages if "No space left" in text)
    for what in ("log.csv", "val.csv", "the checkpoint", "last.safetensors", "step-000003.jpg"):
        assert what in told
    for name in ("log.csv", "val.csv"):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()
    assert files.latest_state(tmp_path)[1]["step"] == 6
    # The weights of step 3 were not kept, so those of step 6 are the best that there are.
    assert {step: best for step, (_, best) in recorder.scores.items()} == {3: False, 6: True}
    assert (tmp_path / "best.safetensors").exists()
    assert not list(tmp_path.glob(".*.part"))


# ---------------------------------------------------------------------------------------- resuming


def test_rows_of_steps_that_are_done_again_do_not_come_twice(whole, card, tmp_path):
    """Killed between a flush of the log and the checkpoint: rows 5 and 6 are there already."""
    folder, four = tmp_path / "run", tmp_path / "four"
    shutil.copytree(whole[0], folder)
    stop_at(card, four, 4)
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors"):
        shutil.copy(four / name, folder / name)
    resume(card, folder)
    same_run(whole[0], folder)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(whole, card, tmp_path):
    stop_at(card, tmp_path, 5)  # checkpoints of steps 5 and 4
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100_000])
    recorder = resume(card, tmp_path)
    assert recorder.first == 4
    assert "checkpoint.safetensors is damaged and was skipped" in recorder.messages[0]
    same_run(whole[0], tmp_path)


def test_a_damaged_checkpoint_does_not_push_the_good_one_out(card, tmp_path):
    stop_at(card, tmp_path, 5)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(b"")
    Trainer(None, card, tmp_path, resume=True)._save(final=False)
    checkpoint.write_bytes(b"")
    assert files.latest_state(tmp_path)[1]["step"] == 4


def test_a_run_that_died_before_its_first_checkpoint_can_begin_again(card, tmp_path):
    def die(*_):
        raise MemoryError

    trainer = Trainer(small_recipe(), card, tmp_path)
    trainer.learner._backward = die
    with pytest.raises(MemoryError):
        trainer.run()
    assert (tmp_path / "recipe.yaml").exists()
    Trainer(small_recipe(steps=1, val_every=0), card, tmp_path).run()
    assert len(rows(tmp_path / "log.csv")) == 1


def test_nothing_to_resume_and_nothing_overwritten(whole, card, tmp_path):
    with pytest.raises(StateError, match="there is no checkpoint in it"):
        Trainer(None, card, tmp_path, resume=True)
    with pytest.raises(FileExistsError, match="--resume continues"):
        Trainer(small_recipe(), card, whole[0])


def test_other_data_do_not_go_on_with_a_run(whole, tmp_path):
    more = write_cityscapes(tmp_path, train=7)
    with pytest.raises(RecipeError, match="had pictures 6, now 7"):
        Trainer(None, more, whole[0], resume=True)


def test_what_changes_when_a_run_is_resumed_is_told_and_recorded(card, tmp_path):
    settings = {"val_every": 0, "val_pictures": 1, "accelerate": False}
    stop_at(card, tmp_path, 3, **settings)
    recipe = small_recipe(steps=8, learning_rate=1e-4, **settings)
    trainer = Trainer(recipe, card, tmp_path, resume=True, reporter=(recorder := Recorder()))
    changes = [
        "after step 3: learning_rate 0.0001 instead of 0.002",
        "after step 3: steps 8 instead of 6",
    ]
    assert recorder.messages == changes
    trainer._run = lambda logs: None  # killed before its first step
    trainer.run()
    resume(card, tmp_path)
    log = rows(tmp_path / "log.csv")
    assert [int(row["step"]) for row in log] == list(range(1, 9))
    assert float(log[4]["learning_rate"]) == pytest.approx(1e-4 * (3 / 8) ** 0.9)
    assert (tmp_path / "recipe.yaml").read_text().startswith("".join(f"# {c}\n" for c in changes))
    with pytest.raises(RecipeError, match="cannot go on with another batch; what may change is"):
        Trainer(recipe.replace(batch=4), card, tmp_path, resume=True)
    with pytest.raises(RecipeError, match=r"steps must be above 8, .* got 7"):
        Trainer(recipe.replace(steps=7), card, tmp_path, resume=True)


def test_a_run_keeps_its_threads_and_tells_of_others(card, tmp_path):
    recipe = small_recipe(threads=2)
    seen, trainer = [], Trainer(recipe, card, tmp_path)

    def look():
        seen.append(torch.get_num_threads())
        trainer._stop.made = True

    at_step(trainer, 1, look)
    with pytest.raises(StoppedError):
        trainer.run()
    assert (seen, torch.get_num_threads()) == ([2], 1)
    for threads, told in ((2, ""), (1, "the run had 2 CPU threads before, now 1: its numbers")):
        changed, recorder = recipe.replace(threads=threads), Recorder()
        trainer = Trainer(changed, card, tmp_path, resume=True, reporter=recorder)
        trainer._run = lambda logs: None
        trainer.run()
        assert any(told in text for text in recorder.messages) == bool(told)
        assert bool(recorder.messages) == bool(told)


# ------------------------------------------------------------------------------------ other runs


def test_two_runs_do_not_share_a_folder(card, tmp_path):
    refused = []
    other = Trainer(small_recipe(seed=7), card, tmp_path)

    class Rival(Recorder):
        def stepped(self, step, loss, learning_rate):
            for begin in (other.run, lambda: Trainer(None, card, tmp_path, resume=True)):
                if begin == other.run or (tmp_path / "checkpoint.safetensors").exists():
                    with pytest.raises(InUseError, match="is in use by another") as error:
                        begin()
                    refused.append((step, str(tmp_path) in str(error.value)))

    Trainer(small_recipe(steps=4, val_every=0), card, tmp_path, reporter=Rival()).run()
    assert refused == [(2, True), (4, True), (4, True)]
    assert [row["step"] for row in rows(tmp_path / "log.csv")] == ["1", "2", "3", "4"]
    with pytest.raises(FileExistsError, match="--resume continues"):
        other.run()  # made before the folder was used
    assert "seed: 5" in (tmp_path / "recipe.yaml").read_text()


def test_a_run_that_another_has_overtaken_does_not_go_on(card, tmp_path):
    stop_at(card, tmp_path, 3)
    first, second = (Trainer(None, card, tmp_path, resume=True) for _ in range(2))
    first.step = 4
    first._save(final=True)
    with pytest.raises(StateError, match="another run has continued in"):
        second.run()


def test_a_file_system_without_locks_does_not_keep_from_training(card, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    with pytest.warns(UserWarning, match=r"cannot be locked \(.*No locks available\)"):
        Trainer(small_recipe(steps=1, val_every=0), card, tmp_path).run()
    assert files.latest_step(tmp_path) == 1
