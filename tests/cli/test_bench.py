"""`fassd bench`, a group of commands, as a person calls it."""

import json
import sys

import pytest
from PIL import Image

from fassd.bench import layers as layer_report
from fassd.bench import run as bench
from fassd.bench import stopwatch
from fassd.bench.costs.roofline import Machine

SMALL = ("--model", "fassd_net_l2", "--size", "64x96", "--repeats", 2, "--warmup", 0)


@pytest.fixture
def no_work(monkeypatch):
    """Fails if anything is measured."""
    monkeypatch.setattr(bench, "run", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(layer_report, "run_layers", lambda *_, **__: pytest.fail("measured"))


@pytest.fixture
def known_machine(monkeypatch):
    monkeypatch.setattr(layer_report, "measure_machine", lambda: Machine(2e11, 5e10))


def test_peers_prints_a_table_and_writes_files(tmp_path, succeed, monkeypatch):
    monkeypatch.setattr(stopwatch, "SETTLE", 0)
    path = tmp_path / "new" / "peers.json"
    result = succeed(
        "bench", "peers", *SMALL, "--no-memory", "--only", "eager,ours",
        "--dtype", "bfloat16,float16",
        "--batches", "2", "--sizes", "96x64", "--json", path,
    )  # fmt: skip
    for words in ("eager NCHW", "ours bfloat16", "ours float16 labels", "match", "2 x 96x64"):
        assert words in result.stdout
    record = json.loads(path.read_text())
    (comparison,) = record["comparisons"]
    assert (comparison["job"]["size"], comparison["job"]["batch"]) == ([96, 64], 2)


def test_what_was_measured_before_ctrl_c_is_kept(tmp_path, run_fassd, monkeypatch):
    measure = bench.measure

    def until_the_second(job, *arguments):
        if job.size == (96, 64):
            raise KeyboardInterrupt
        return measure(job, *arguments)

    monkeypatch.setattr(stopwatch, "SETTLE", 0)
    monkeypatch.setattr(bench, "measure", until_the_second)
    file = tmp_path / "peers.json"
    options = ("--no-memory", "--only", "eager", "--json", file)
    result = run_fassd("bench", "peers", *SMALL, "--sizes", "64x96,96x64", *options)
    assert result.exit_code == 130 and "stopped" in result.stderr
    assert "64x96" in result.stdout
    assert [each["job"]["size"] for each in json.loads(file.read_text())["comparisons"]] == [
        [64, 96]
    ]
    file.unlink()
    result = run_fassd("bench", "peers", *SMALL, "--sizes", "96x64,64x96", *options)
    assert result.exit_code == 130 and not file.exists()  # of the first one nothing was known


@pytest.fixture
def jobs(monkeypatch):
    """What would be measured."""
    jobs = []
    monkeypatch.setattr(bench, "run", lambda asked, *_, **__: jobs.extend(asked) or "a report")
    return jobs


def test_every_size_meets_every_batch(succeed, jobs):
    succeed("bench", "peers", *SMALL, "--batches", "1,2", "--sizes", "64x96,96x64")
    asked = [(job.size, job.batch) for job in jobs]
    assert asked == [((64, 96), 1), ((64, 96), 2), ((96, 64), 1), ((96, 64), 2)]


def test_all_networks_each_with_its_weights(succeed, jobs):
    succeed("bench", "peers", "--all", "--sizes", "256x512", "--threads", 1)
    assert len({job.model for job in jobs}) == len(jobs) == 11
    assert {job.model for job in jobs if job.weights} == {"fassd_net", "fassd_net_l2"}
    assert all(job.size == (256, 512) and job.threads == 1 for job in jobs)


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ("--module networks:tiny", "networks:tiny"),
        ("--timm resnet18d", "timm:resnet18d"),
        ("--smp Unet/resnet18", "smp:Unet/resnet18"),
    ],
)
def test_a_network_of_others_takes_the_place_of_ours(succeed, jobs, options, model):
    succeed("bench", "run", *options.split(), "--size", "64x96", "--dtype", "bfloat16")
    (job,) = jobs
    assert (job.model, job.weights, job.size) == (model, None, (64, 96))


def test_published_networks_are_measured_beside_ours(succeed, jobs, monkeypatch):
    from fassd.bench.others import OTHERS, OtherNetwork

    names = {network.title for network in OTHERS}
    monkeypatch.setattr(OtherNetwork, "missing", property(lambda network: ""))
    succeed("bench", "peers", *SMALL, "--others", "--sizes", "64x96,96x64")
    models = ["fassd_net_l2", *(network.model for network in OTHERS)]
    assert len(names) == len(OTHERS) and [job.model for job in jobs] == 2 * models


def test_published_networks_that_are_missing_are_named(succeed, jobs, monkeypatch):
    from fassd.bench.others import OtherNetwork

    monkeypatch.setattr(OtherNetwork, "missing", property(lambda network: network.install))
    result = succeed("bench", "peers", *SMALL, "--others")
    assert [job.model for job in jobs] == ["fassd_net_l2"]
    assert "PIDNet-S is left out: pip install onedl-mmsegmentation" in result.stderr
    assert "pip install 'fassd-net[smp]'" in result.stderr


def test_layers_prints_and_writes_files(tmp_path, succeed, known_machine):
    files = ("--json", tmp_path / "layers.json", "--plot", tmp_path / "layers.png")
    result = succeed("bench", "layers", *SMALL, *files)
    for words in ("denseBlocksUp.2", "upsample argmax", "predicted", "GFLOP/s", "total"):
        assert words in result.stdout
    assert json.loads((tmp_path / "layers.json").read_text())["layers"][0]["name"] == "base.0"
    with Image.open(tmp_path / "layers.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("peers --sizes 64x96,64", "'64' is not a size"),
        ("peers --batches 1,0", "'0' is not a number of pictures"),
        ("peers --dtype float16,int4", "'int4' is not one of float32, float16, bfloat16, int8"),
        ("peers --only eager,warp", "unknown candidate 'warp', known are eager"),
        ("peers --all --weights cityscapes", "--weights is for one network: leave out --all"),
        ("peers -m net.onnx", "--model: only `fassd bench run` takes an exported file"),
        ("layers --plot x.jpg", "--plot must be the name of a PNG file"),
        ("layers -m net.onnx", "--model: only `fassd bench run` takes an exported file"),
        ("run --dtype float16,float32", "'float16,float32' is not one of"),
        ("peers --layers", "No such option: --layers"),
        ("--peers", "No such option: --peers"),
        ("peers --compile", "No such option: --compile"),
        ("layers --device cuda", "No such option: --device"),
        ("run --plot x.png", "No such option: --plot"),
        ("peers --plot x.png", "No such option: --plot"),
        ("run --sizes 64x96", "No such option: --sizes"),
        (
            "run --module networks",
            "--module must be MODULE:NAME, like nets.small:unet, got 'networks'",
        ),
        ("run --timm resnet18 --smp Unet/resnet18", "only one of --timm, --smp can be given"),
        ("run --timm resnet18 -m fassd_net", "only one of --timm, --model can be given"),
        ("run --module a:b --compile", "only one of --module, --compile can be given"),
        ("peers --timm resnet18", "No such option: --timm"),
        ("launches h200 --weights cityscapes", "No such option: --weights"),
        ("launches h200 --backend triton", "No such option: --backend"),
        ("compare base.json --size 64x96", "No such option: --size"),
    ],
)
def test_mistakes_show_before_any_work(refusal, no_work, options, message):
    assert message in refusal("bench", *options.split())


def test_plots_ask_for_matplotlib_before_any_work(refusal, no_work, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    error = refusal("bench", "layers", "--plot", tmp_path / "layers.png")
    assert "pip install 'fassd-net[bench]'" in error
