"""`fassd bench --peers` and `--layers`, as a person calls them."""

import json
import sys

import pytest
from PIL import Image

from fassd.bench import layers as layer_report
from fassd.bench import peers as peer_report
from fassd.bench import stopwatch
from fassd.bench.costs.roofline import Machine

SMALL = ("--model", "fassd_net_l2", "--size", "64x96", "--repeats", 2, "--warmup", 0)


@pytest.fixture
def no_work(monkeypatch):
    """Fails if anything is measured."""
    monkeypatch.setattr(peer_report, "run_peers", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(layer_report, "run_layers", lambda *_, **__: pytest.fail("measured"))


@pytest.fixture
def known_machine(monkeypatch):
    monkeypatch.setattr(layer_report, "measure_machine", lambda: Machine(2e11, 5e10))


def test_peers_prints_a_table_and_writes_files(tmp_path, run_fassd, monkeypatch):
    monkeypatch.setattr(stopwatch, "SETTLE", 0)
    files = {"--json": tmp_path / "new" / "peers.json", "--plot": tmp_path / "new" / "peers.png"}
    result = run_fassd(
        "bench", "--peers", *SMALL, "--no-memory", "--only", "eager,ours",
        "--dtype", "bfloat16,float16",
        "--batches", "1,2", "--sizes", "64x96,96x64", *(x for pair in files.items() for x in pair),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for words in ("eager NCHW", "ours bfloat16", "ours float16 labels", "match", "2 x 96x64"):
        assert words in result.stdout
    record = json.loads(files["--json"].read_text())
    measured = [(c["job"]["size"], c["job"]["batch"]) for c in record["comparisons"]]
    assert measured == [([64, 96], 1), ([64, 96], 2), ([96, 64], 1), ([96, 64], 2)]
    with Image.open(files["--plot"]) as image:
        assert image.format == "PNG"


def test_all_networks_each_with_its_weights(run_fassd, monkeypatch):
    jobs = []
    monkeypatch.setattr(
        peer_report, "run_peers", lambda asked, chosen, **_: jobs.extend(asked) or "a report"
    )
    result = run_fassd("bench", "--peers", "--all", "--sizes", "256x512", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert len({job.model for job in jobs}) == len(jobs) == 9
    assert {job.model for job in jobs if job.weights} == {"fassd_net", "fassd_net_l2"}
    assert all(job.size == (256, 512) and job.threads == 1 for job in jobs)


def test_layers_prints_and_writes_files(tmp_path, run_fassd, known_machine):
    files = ("--json", tmp_path / "layers.json", "--plot", tmp_path / "layers.png")
    result = run_fassd("bench", "--layers", *SMALL, *files)
    assert result.exit_code == 0, result.output
    for words in ("denseBlocksUp.2", "upsample argmax", "predicted", "GFLOP/s", "total"):
        assert words in result.stdout
    assert json.loads((tmp_path / "layers.json").read_text())["layers"][0]["name"] == "base.0"
    with Image.open(tmp_path / "layers.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--peers", "--sizes", "64x96,64"), "'64' is not a size"),
        (("--peers", "--batches", "1,0"), "'0' is no number of pictures"),
        (("--peers", "--dtype", "float16,int8"), "'int8' is not one of float32, float16, bfloat16"),
        (("--peers", "--only", "eager,warp"), "unknown candidate 'warp', known are eager"),
        (("--peers", "--layers"), "--layers: only without --peers"),
        (("--peers", "--compile"), "--compile: only without --peers and --layers"),
        (("--layers", "--device", "cuda"), "--device: only without --layers"),
        (("--peers", "--all", "--weights", "cityscapes"), "--weights: only without --all"),
        (("--peers", "--only", "ours", "--plot", "x.png"), "--plot: only with eager among --only"),
        (("--plot", "x.png"), "--plot: only with --peers or --layers"),
        (("--sizes", "64x96"), "--sizes: only with --peers"),
        (("--dtype", "float16,float32"), "more than one --dtype: only with --peers"),
    ],
)
def test_mistakes_show_before_any_work(run_fassd, no_work, options, message):
    result = run_fassd("bench", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_plots_ask_for_matplotlib_before_any_work(run_fassd, no_work, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run_fassd("bench", "--layers", "--plot", tmp_path / "layers.png")
    assert result.exit_code == 2 and "pip install 'fassd-net[bench]'" in result.stderr
