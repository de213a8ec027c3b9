import json
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from fassd.io.files import InUseError, locked
from fassd.training import state as files
from fassd.training.state import StateError


def save(folder, step):
    files.save_state(folder, {"x": torch.full((5,), float(step))}, {"step": step, "note": "a"})


def test_the_latest_and_the_one_before_are_kept(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    tensors, facts, troubles = files.latest_state(tmp_path)
    assert facts == {"step": 3, "note": "a"} and troubles == []
    assert tensors["x"].tolist() == [3.0] * 5
    assert load_file(tmp_path / files.PREVIOUS)["x"].tolist() == [2.0] * 5
    assert {path.name for path in tmp_path.iterdir()} == {files.CHECKPOINT, files.PREVIOUS}


@pytest.mark.parametrize("size", [0, 4, 60, 120])
def test_a_cut_off_file_falls_back(tmp_path, size):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / files.CHECKPOINT
    path.write_bytes(path.read_bytes()[:size])
    _, facts, troubles = files.latest_state(tmp_path)
    assert facts["step"] == 1
    assert len(troubles) == 1 and str(path) in troubles[0]


def test_a_flipped_bit_falls_back_and_names_the_tensor(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / files.CHECKPOINT
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    _, facts, troubles = files.latest_state(tmp_path)
    assert facts["step"] == 1
    assert "is damaged: x does not match the checksum" in troubles[0]
    path.write_bytes(path.read_bytes().replace(b'\\"step\\": 2', b'\\"step\\": 3'))
    assert "does not match the checksum" in files.latest_state(tmp_path)[2][0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_passed_over(tmp_path, value):
    save(tmp_path, 1)
    files.save_state(tmp_path, {"model.a": torch.tensor([1.0, value])}, {"step": 2})
    _, facts, troubles = files.latest_state(tmp_path)
    assert facts["step"] == 1
    assert f"holds {value} in model.a (1 of 2 values)" in troubles[0]
    for step, name in ((3, "optimizer.0.exp_avg_sq"), (4, "average.norm.running_var")):
        files.save_state(tmp_path, {name: torch.tensor([value])}, {"step": step})
        assert files.latest_state(tmp_path)[1]["step"] == step


def test_a_pipe_in_place_of_a_checkpoint(tmp_path):
    save(tmp_path, 1)
    os.mkfifo(tmp_path / files.NEXT)
    _, facts, troubles = files.latest_state(tmp_path)
    assert facts["step"] == 1 and "is a pipe, device or socket" in troubles[0]


def test_checkpoints_without_checksums_are_read(tmp_path):
    facts = {"fassd": json.dumps({"step": 4})}
    save_file({"x": torch.ones(2)}, tmp_path / files.CHECKPOINT, facts)
    assert files.latest_state(tmp_path)[1:] == ({"step": 4}, [])


def test_killed_between_the_two_renames(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / files.CHECKPOINT).rename(tmp_path / files.NEXT)
    assert files.latest_state(tmp_path)[1]["step"] == 2


def test_a_failed_write_leaves_everything(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_lock_ends_with_its_process_and_not_with_the_workers(tmp_path):
    """By kill -9, while a child of the killed process lives on."""
    reading, writing = os.pipe()
    owner = os.fork()
    if owner == 0:
        with locked(tmp_path):
            worker = os.fork()
            if worker:
                os.write(writing, b"%d" % worker)
            time.sleep(60)
        os._exit(1)
    worker = int(os.read(reading, 20))
    try:
        with (
            pytest.raises(InUseError, match=f"{tmp_path} is in use by another process or run"),
            locked(tmp_path),
        ):
            pass
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        with locked(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_folder_is_locked_once_and_others_freely(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with locked(tmp_path):
        for same in (tmp_path, tmp_path / "link", tmp_path / "sub" / ".."):
            with pytest.raises(InUseError, match="is in use"), locked(same):
                pass
        with locked(tmp_path / "missing"):
            pass
    with locked(tmp_path):
        pass


def test_nothing_there(tmp_path):
    with pytest.raises(StateError, match=f"cannot resume from {tmp_path}: there is no checkpoint"):
        files.latest_state(tmp_path)
