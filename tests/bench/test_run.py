"""What `fassd bench run` and `fassd demo` measure."""

import json
from dataclasses import replace

import pytest
import torch

from fassd.bench import jobs
from fassd.bench.jobs import Job, calibrate
from fassd.bench.run import run

SMALL = Job(model="fassd_net_l2", size=(64, 96), repeats=2, warmup=0, memory=False)


def test_paths():
    assert list(SMALL.paths()) == ["PyTorch float32", "fassd_kernels float32"]
    assert list(replace(SMALL, backend="reference", compile=True).paths()) == [
        "PyTorch float32",
        "torch.compile float32",
    ]
    assert list(replace(SMALL, dtype="float16", device="cuda").paths()) == [
        "PyTorch float32",
        "PyTorch float16",
        "fassd_kernels float16",
    ]


@pytest.fixture(scope="module")
def report():
    return run([SMALL])


def test_calibrated_random_weights_show_several_classes_and_are_reproducible(report):
    (scene,) = report.scenes
    assert scene.picture.shape == (64, 96, 3) and scene.labels.shape == (64, 96)
    assert (scene.labels == run([SMALL]).scenes[0].labels).all()
    shares = torch.bincount(torch.from_numpy(scene.labels).flatten(), minlength=19) / (64 * 96)
    assert shares.max() < 0.9 and (shares > 0.01).sum() >= 3


def test_report_of_agreeing_paths(report):
    assert report.labels_agree > 99.9
    (measured,) = report.results.comparisons
    assert measured.reference is measured.results[0]
    record = json.loads(json.dumps(report.to_json()))
    assert record["job"]["size"] == [64, 96]
    assert record["results"][0]["speedup"] == 1 and record["results"][1]["n"] == 2
    assert record["results"][1]["speedup"] > 0
    assert any("random weights" in note for note in record["notes"])


def test_no_speedup_where_outputs_disagree(monkeypatch):
    monkeypatch.setattr(jobs, "ours", lambda context, _: lambda x: -context.module(x))
    report = run([SMALL])
    (measured,) = report.results.comparisons
    assert not measured.results[1].comparable
    assert report.labels_agree < 99
    assert any("no speed-up is given" in note for note in measured.notes)
    assert report.to_json()["results"][1]["speedup"] is None


def test_calibrate_leaves_momentum_and_gives_eval_mode():
    layer = torch.nn.Sequential(torch.nn.BatchNorm2d(2, momentum=0.3))
    batch = torch.randn(2, 2, 8, 8) * 3 + 5
    assert calibrate(layer, batch) is layer
    assert layer[0].momentum == 0.3 and not layer.training
    torch.testing.assert_close(layer[0].running_mean, batch.mean((0, 2, 3)))
    torch.testing.assert_close(layer[0].running_var, batch.var((0, 2, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "fassd"}, "unknown model 'fassd'"),
        ({"dtype": "int8"}, "dtype must be float32, float16 or bfloat16, got 'int8'"),
        ({"size": (16, 96)}, "at least"),
    ],
)
def test_bench_names_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        run([replace(SMALL, **changes)])
