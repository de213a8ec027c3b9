"""The program that measures networks of others, and goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import others
from fassd.bench import stopwatch
from fassd.bench.others import OTHERS, OtherNetwork

QUICK = ("--sizes", "64x96", "--ways", "eager", "ours", "--repeats", "1", "--no-memory")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stopwatch, "SETTLE", 0)
    monkeypatch.setattr(OtherNetwork, "missing", property(lambda network: network.install))
    monkeypatch.setattr(others, "NETWORKS", {"erfnet_like": "benchmarks.others:erfnet_like"})
    return tmp_path / "cpu" / "others.json"


def test_every_network_has_a_name_of_its_own() -> None:
    assert len(others.NETWORKS) == len(OTHERS) + 3
    assert {"pidnet_s", "unet", "deeplabv3_resnet50", "erfnet_like"} <= set(others.NETWORKS)


def test_a_network_in_erfnets_manner() -> None:
    network = others.erfnet_like().eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 64, 96)).shape == (1, 19, 64, 96)
    assert 1.9e6 < sum(parameter.numel() for parameter in network.parameters()) < 2.2e6


def test_a_run_goes_on_and_named_networks_are_measured_again(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert others.main([*QUICK, "--output", str(file)]) == 0
    first = json.loads(file.read_text())
    (part,) = first["comparisons"]
    assert [result["key"] for result in part["results"]] == ["eager", "ours"]
    assert "times as fast as eager NCHW" in capsys.readouterr().out
    assert others.main([*QUICK, "--output", str(file)]) == 0
    assert json.loads(file.read_text()) == first  # there was nothing left to do
    assert others.main([*QUICK, "--output", str(file), "--only", "erfnet_like"]) == 0
    again = json.loads(file.read_text())
    assert len(again["comparisons"]) == 1 and again != first
    assert "| erfnet_like | 64x96 |" in "\n".join(others.tables(file.parents[1]))
    again["environment"]["torch"] = "1.0"
    file.write_text(json.dumps(again))
    with pytest.raises(ValueError, match=r"has torch 1\.0, here is"):
        others.main([*QUICK, "--output", str(file)])


def test_what_is_missing_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(others, "NETWORKS", {"pidnet_s": "fassd.bench.others:pidnet_s"})
    assert others.main([*QUICK, "--output", str(file)]) == 0
    assert "PIDNet-S is left out: pip install onedl" in capsys.readouterr().out
    assert not file.exists()


def test_without_results_the_document_says_so(tmp_path: Path) -> None:
    assert others.tables(tmp_path) == ["Not measured yet: `python -m benchmarks.others` does."]
    with pytest.raises(SystemExit):
        others.main(["--only", "warp_net"])
