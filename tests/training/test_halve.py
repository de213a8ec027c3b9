import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fassd.models import create_model, load_checkpoint
from fassd.training.halve import halve


def facts(start, teacher):
    return {"fassd": json.dumps({"step": 7, "recipe": {"weights": start, "teacher": teacher}})}


def test_convolutions_become_half_and_the_rest_stays(tmp_path):
    torch.manual_seed(0)
    model = create_model("fassd_net_l2")
    save_file(
        model.state_dict(), tmp_path / "in.safetensors", facts("/home/me/runs/a", "/tmp/b/c.x")
    )
    halve(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    for key, value in load_file(tmp_path / "out.safetensors").items():
        own = model.state_dict()[key]
        assert torch.equal(value, own.half() if own.dim() == 4 else own)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert {"fassd": file.metadata()["fassd"]} == facts("runs/a", "b/c.x")
    twin = create_model("fassd_net_l2")
    load_checkpoint(twin, tmp_path / "out.safetensors")
    assert twin.finalConv.weight.dtype == torch.float32


def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path):
    save_file({"w": torch.full((1, 1, 1, 1), 1e6)}, tmp_path / "in.safetensors")
    with pytest.raises(ValueError, match=r"w holds 1000000\.0, float16 ends at 65504"):
        halve(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]
