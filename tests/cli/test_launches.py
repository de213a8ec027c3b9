"""`fassd bench launches GPU`, as a person calls it."""

import json
import subprocess
import sys

import pytest

from fassd.bench import timeline
from fassd.bench.timeline import Kernel, Timeline
from fassd_kernels.triton import availability

pytestmark = pytest.mark.skipif(
    bool(availability.triton_missing()), reason=availability.triton_missing()
)
LAUNCHES = ("bench", "launches", "h200", "--model", "fassd_net_l2")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    """Where the tests run on an H200, too, nothing is measured unless they say so."""
    monkeypatch.setattr(timeline, "unmeasurable", lambda _: "torch sees no CUDA GPU")


def test_the_table(succeed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "245")
    result = succeed(*LAUNCHES)
    lines = result.stdout.splitlines()
    assert lines[0] == "fassd_net_l2, 1 x 1024x2048, float16, labels, on NVIDIA H200"
    assert "frames/s" in lines[1] and "measured" not in lines[1]
    for words in (
        "hardblock 1", "48>10", "upsample_argmax", "waves", "above", "bound by", "px x", "total",
        "instr.", "epilogue", "issue",
        "not measured: torch sees no CUDA GPU",
    ):  # fmt: skip
        assert words in result.stdout


def test_files_batch_and_type(succeed, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "new" / "l4.json"
    result = succeed(
        *("bench", "launches", "l4", "--model", "fassd_net_l1", "--size", "192x384"),
        *("--batch", 2, "--dtype", "bfloat16", "--classes", 7, "--json", path),
    )
    assert result.stdout.startswith("fassd_net_l1, 2 x 192x384, bfloat16, labels, on NVIDIA L4")
    assert "px x" not in result.stdout and "…" not in result.stdout
    record = json.loads(path.read_text())
    assert (record["gpu"], record["batch"], record["dtype"]) == ("NVIDIA L4", 2, "bfloat16")
    assert record["job"]["size"] == [192, 384]
    assert record["rows"][0]["bytes"] == 2 * (2 * (3 * 192 * 384 + 16 * 64 * 128) + 9 * 3 * 16)
    assert record["rows"][-1]["channels"] == "7"
    assert sum(row["count"] for row in record["rows"]) == record["launches"]
    times = sum(row["predicted_s"] for row in record["rows"])
    assert times == pytest.approx(record["predicted_s"])


def test_measured_beside_predicted(succeed, monkeypatch, tmp_path):
    asked = []

    def time_network(prediction, *arguments):
        asked.append(arguments)
        kernels = [
            Kernel(launch.kernel, i * 1e-6, (i + 1) * 1e-6)
            for i, launch in enumerate(prediction.launches)
        ]
        return Timeline([kernels], [250e-6])

    monkeypatch.setattr(timeline, "unmeasurable", lambda _: "")
    monkeypatch.setattr(timeline, "time_network", time_network)
    path = tmp_path / "h200.json"
    options = ("--size", "64x128", "--repeats", 3, "--json", path)
    result = succeed(*LAUNCHES, *options)
    assert asked == [(3, 19, 2)]
    assert "measured 0.250 ms: 4000 frames/s" in result.stdout
    assert "measured: from the end of a kernel" in result.stdout
    record = json.loads(path.read_text())
    assert record["measured_s"] == 250e-6 and record["note"] == ""
    assert record["rows"][0]["measured_s"] == pytest.approx(1e-6)


def test_what_fails_on_the_gpu_does_not_hide_the_prediction(succeed, monkeypatch):
    monkeypatch.setattr(timeline, "unmeasurable", lambda _: "")
    monkeypatch.setattr(timeline, "time_network", lambda *_: Timeline([[]], [1.0]))
    result = succeed(*LAUNCHES, "--size", "64x128")
    assert "launches are predicted; the GPU ran 0" in result.stdout


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        ("titan", "gpu is 'titan'; expected one of Tesla T4"),
        ("mi300x", "the cuda backend is for NVIDIA's"),
    ],
)
def test_mistakes(refusal, gpu, message):
    assert message in refusal("bench", "launches", gpu)


def test_without_triton(refusal, monkeypatch):
    monkeypatch.setattr(availability, "triton_missing", lambda: "Triton is not installed")
    assert "pip install 'fassd-net[triton]'" in refusal(*LAUNCHES)


def test_the_report_imports_no_kernels():
    code = "import sys, fassd.bench.launches; print('fassd_kernels' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
