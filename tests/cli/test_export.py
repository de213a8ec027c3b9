"""`fassd export`, and its files as --model of the other commands."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from export.graphs import graphs_made_once
from PIL import Image
from typer.testing import CliRunner

import fassd
from fassd.cli import app
from fassd.export import ExportedNetwork, Verification
from fassd.synth import render_street
from fassd.synth.write import write_tree

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = "128x256"
BYTES = ("-o", "net.pt2", "--size", SIZE, "--dtype", "int8")


@pytest.fixture(scope="module", autouse=True)
def graphs():
    with graphs_made_once():
        yield


def exported(path, *words):
    """The result of the command, which wrote a float32 file of L2 at 128x256."""
    words = ["export", "fassd_net_l2", "-o", path, "--size", SIZE, *words]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A file with the weights that ship."""
    folder = tmp_path_factory.mktemp("files")
    done = exported(folder / "net.onnx", "--verify", "--json", folder / "net.json")
    assert re.search(r"verified: (100\.0|99\.9)\d+% of labels equal", done.stderr)
    assert re.search(r"written: .*net\.onnx \(9\.\d MiB\)", done.stderr)
    return folder / "net.onnx"


@pytest.fixture(scope="module")
def random_net(tmp_path_factory):
    """A file with random weights and the classes of CamVid."""
    path = tmp_path_factory.mktemp("random") / "net.onnx"
    exported(path, "--data", "camvid", "-w", "random")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streets")
    write_tree(folder, "val", 2, size=(128, 256), workers=1)
    return folder


def test_json_tells_everything(net):
    record = json.loads(net.with_suffix(".json").read_text())
    assert record["files"] == [str(net)] and record["bytes"] == net.stat().st_size
    assert record["verification"]["passed"] and record["verification"]["labels_equal"] > 0.9995
    assert record["metadata"]["variant"] == "fassd_net_l2"
    assert record["metadata"]["versions"]["fassd"] == fassd.__version__


def test_val_scores_a_file_like_its_network(succeed, net, data, tmp_path):
    scores = {}
    for name, words in {
        "network": ["-m", "fassd_net_l2", "--backend", "reference"],
        "onnxruntime": ["-m", net],
        "openvino": ["-m", net, "--backend", "openvino"],
    }.items():
        done = succeed("val", "--data", data, *words, "--json", tmp_path / f"{name}.json")
        assert "streets weights" in done.stderr
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["settings"]["weights"] == "streets"
        scores[name] = record["miou"]
    assert scores["onnxruntime"] == pytest.approx(scores["network"], abs=1e-4)
    assert scores["openvino"] == pytest.approx(scores["network"], abs=1e-4)


def test_predict_with_a_file(succeed, net, tmp_path):
    for name, size in (("same", (128, 256)), ("other", (200, 300))):
        Image.fromarray(render_street(*size, seed=1)[0]).save(tmp_path / f"{name}.png")
    pictures = [tmp_path / "same.png", tmp_path / "other.png"]
    succeed("predict", *pictures, "-o", tmp_path / "file", "-m", net)
    words = ("-m", "fassd_net_l2", "--size", SIZE)
    succeed("predict", *pictures, "-o", tmp_path / "net", *words)
    for picture in pictures:
        found, expected = (
            np.array(Image.open(tmp_path / kind / f"{picture.stem}_trainids.png"))
            for kind in ("file", "net")
        )
        assert (found == expected).mean() > 0.9999


def test_bench_puts_a_file_beside_its_network(succeed, run_fassd, net, tmp_path):
    out = tmp_path / "bench.json"
    words = ("--repeats", "2", "--warmup", "0", "--no-memory", "--json", out)
    succeed("bench", "run", "-m", net, *words)
    record = json.loads(out.read_text())
    assert record["job"]["size"] == [128, 256] and record["job"]["model"] == "fassd_net_l2"
    names = [row["name"] for row in record["results"]]
    assert names[0] == "PyTorch float32"
    assert {"net.onnx, onnxruntime", "net.onnx, openvino"} <= set(names)
    assert all(row["labels_equal_percent"] > 99.9 for row in record["results"])
    run_fassd("bench", "run", "-m", net, "--backend", "onnxruntime", *words)
    names = [row["name"] for row in json.loads(out.read_text())["results"]]
    assert "net.onnx, openvino" not in names and "net.onnx, onnxruntime" in names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "64x128"), "--size: .* has 128x256, asked for was 64x128"),
        (("--batch", "2"), "--batch: .* has 1, asked for was 2"),
        (("--dtype", "float16"), "--dtype: .* has float32, asked for was float16"),
    ],
)
def test_bench_refuses_what_the_file_is_not(refusal, net, words, message):
    done = refusal("bench", "run", "-m", net, *words)
    assert re.search(message, done), done


def test_bench_of_random_weights_agrees_and_compares_with_itself(succeed, random_net, tmp_path):
    base = tmp_path / "base.json"
    words = ("-m", random_net, "--backend", "onnxruntime", "--repeats", "2", "--warmup", "0")
    succeed("bench", "run", *words, "--no-memory", "--json", base)
    rows = json.loads(base.read_text())["results"]
    assert all(row["labels_equal_percent"] > 99 for row in rows)
    succeed("bench", "compare", base, "--tolerance", "99")


def test_bench_asks_for_weights_that_the_file_only_names(refusal, net, tmp_path):
    import onnx

    model = onnx.load(net)
    (entry,) = (e for e in model.metadata_props if e.key == "fassd")
    entry.value = entry.value.replace('"weights": "streets"', '"weights": "best.safetensors"')
    onnx.save(model, tmp_path / "own.onnx")
    done = refusal("bench", "run", "-m", tmp_path / "own.onnx", "--repeats", "1")
    assert "made with the weights best.safetensors: give that file as --weights" in done


def test_a_file_that_differs_is_not_written(refusal, tmp_path, monkeypatch):
    target = tmp_path / "net.onnx"
    target.write_text("what was there")
    worse = Verification(0.5, 0.1, 4, 0.999, 1e-3)
    monkeypatch.setattr("fassd.export.verify", lambda *_, **__: worse)
    done = refusal("export", "fassd_net_l2", "-o", target, "--size", SIZE)
    assert "is not written, since it differs from its source: 50.000% of labels" in done
    assert "asked for are at least 99.9% of labels equal and logits within 0.001" in done
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert target.read_text() == "what was there"


def test_without_tensorrt_the_line_for_trtexec_is_printed(succeed, tmp_path, monkeypatch):
    monkeypatch.setattr("fassd.cli.export._has_tensorrt", lambda: False)
    target = tmp_path / "net.engine"
    done = succeed("export", "fassd_net_l2", "-o", target, "--size", SIZE, "--dtype", "float16")
    onnx_file = tmp_path / "net.onnx"
    assert done.stdout.strip() == f"trtexec --onnx={onnx_file} --saveEngine={target} --fp16"
    assert re.search(r"verified: (100\.0|99\.9)\d+% of labels equal", done.stderr)
    assert ExportedNetwork(onnx_file).metadata.format == "onnx"
    assert ExportedNetwork(onnx_file).metadata.dtype == "float32"  # TensorRT makes it narrower
    assert json.loads((tmp_path / "net.engine.json").read_text())["format"] == "tensorrt"
    assert not target.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "net.bin"), "end its name in .onnx, .pt2, .xml or .engine, or give --format"),
        (("-o", "net.xml", "-f", "onnx"), "a file of the format onnx ends in .onnx"),
        (("-o", "net.onnx", "--size", "20x20"), "size must be at least 57x57, got 20x20"),
        (("-o", "net.onnx", "--size", "big"), "'big' is not a size"),
        (("-o", "net.onnx", "--opset", "9"), "opset must be 16 to 25, got 9: older ones lack"),
        (("-o", "net.xml", "--opset", "18"), "opset only applies to ONNX, and the format is"),
        (("-o", "net.onnx", "--dtype", "int8", "--size", "dynamic"), "calibrated at one size"),
        ((*BYTES, "--calibration", "absent"), "absent: no such file or folder"),
        ((*BYTES, "--backend", "reference"), "backend must be auto or cpu for torch in int8"),
        (("-o", "net.onnx", "--dtype", "bfloat16"), "dtype must be float32, float16, int8"),
        (("-o", "net.onnx", "--calibration", "x"), "--calibration works only with --dtype int8"),
        (("-o", "net.onnx", "-w", "random", "--dtype", "float16", "--verify"), "amplify rounding"),
        (("-o", "net.pt2", "--backend", "nonsense", "--size", SIZE), "nonsense"),
        (
            (
                "-o",
                "no/such\0folder/net.onnx",
            ),
            "",
        ),
    ],
)
def test_bad_input(run_fassd, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    done = run_fassd("export", "fassd_net_l2", *words)
    assert done.exit_code == 2, done.stderr
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", done.stderr).split())
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bytes(succeed, data, tmp_path):
    pictures = data / "leftImg8bit"
    target, record = tmp_path / "net.pt2", tmp_path / "net.json"
    words = ("--size", SIZE, "--dtype", "int8", "--calibration", pictures, "--json", record)
    done = succeed("export", "fassd_net_l2", "-o", target, *words)
    assert re.search(r"verified: 9[5-9]\.\d+% of labels equal", done.stderr)
    about = json.loads(record.read_text())["metadata"]
    assert about["dtype"] == "int8"
    assert about["calibration"] == {"pictures": 2, "source": "leftImg8bit"}
    found = {}
    for name, words in {
        "file": ("-m", target),
        "network": ("-m", "fassd_net_l2", "--dtype", "int8", "--calibration", pictures),
    }.items():
        succeed("val", "--data", data, *words, "--json", record)
        found[name] = json.loads(record.read_text())["miou"]
    assert found["file"] == pytest.approx(found["network"], abs=1e-4)


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_bad_pictures_for_calibration(refusal, tmp_path, content):
    folder = tmp_path / "photos"
    folder.mkdir()
    if content is not None:
        Image.fromarray(render_street(128, 256, seed=1)[0]).save(folder / "a.png")
        (folder / "b.png").write_bytes(content)
    words = ("--size", SIZE, "--dtype", "int8", "--calibration", folder)
    done = refusal("export", "fassd_net_l2", "-o", tmp_path / "net.pt2", *words)
    assert ("b.png" if content else f"{folder}: this folder holds no pictures") in done
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["fassd_kernels.calibrate.observe", "fassd.export.write.traced"])
def test_an_export_that_is_stopped_leaves_nothing(tmp_path, place, number):
    module, _, name = place.rpartition(".")
    program = (
        f"import os, signal, sys, time, {module} as module\n"
        f"def stop(*_): os.kill(os.getpid(), {int(number)}); time.sleep(60)\n"
        f"module.{name} = stop\n"
        "from fassd.cli import app; app(sys.argv[1:])"
    )
    Image.fromarray(render_street(128, 256, seed=1)[0]).save(tmp_path / "street.png")
    words = ["export", "fassd_net_l2", *BYTES, "--calibration", "street.png"]
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130 and done.stderr.splitlines()[-1] == "stopped", done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["street.png"]


def test_a_file_is_no_network_to_export(refusal, net, tmp_path):
    assert "MODEL must be a network's name" in refusal("export", net, "-o", tmp_path / "again.onnx")


def test_classes_of_a_card_are_in_the_file_and_its_colours_in_the_results(
    succeed, random_net, tmp_path
):
    classes = ExportedNetwork(random_net).metadata.classes
    assert len(classes) == 11 and classes[0].name.lower() == "sky"
    Image.fromarray(render_street(128, 256, seed=1)[0]).save(tmp_path / "street.png")
    succeed("predict", tmp_path / "street.png", "-o", tmp_path / "out", "-m", random_net)
    painted = np.array(Image.open(tmp_path / "out" / "street_color.png"))
    labels = np.array(Image.open(tmp_path / "out" / "street_trainids.png"))
    colors = np.array([info.color for info in classes], np.uint8)
    assert np.array_equal(painted, colors[labels])
