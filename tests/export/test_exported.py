"""An exported file in place of a network: what it takes, and what is refused."""

from __future__ import annotations

import copy
import json
import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export.conftest import CERTAIN, LABELS, SIZE, streets

from fassd import Segmenter
from fassd.data import normalize
from fassd.export import (
    ExportedNetwork,
    Exporter,
    ExportError,
    Metadata,
    Request,
    default_device,
    is_exported,
    staged,
    verify,
)
from fassd.export.network import denormalized, levels, normalized
from fassd.export.tensorrt_file import trtexec
from fassd.io.palette import LabelClass
from fassd.models.info import temperature_of
from fassd.models.preprocess import MEAN, STD

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("name", ["a.onnx", "b.PT2", "c.xml", "d.engine", "e.plan"])
def test_names_of_files(name):
    assert is_exported(name)
    assert default_device(name) == ("cuda" if name in ("d.engine", "e.plan") else "cpu")
    assert not is_exported("fassd_net") and not is_exported(torch.nn.Identity())


def test_pictures_and_batches_are_converted_without_loss():
    levels_of_all = np.arange(256, dtype=np.uint8)
    picture = np.stack([levels_of_all, levels_of_all[::-1], np.roll(levels_of_all, 7)], 1)[None]
    batch = torch.from_numpy(normalize(picture))[None]
    mean, std = levels(MEAN), levels(STD)
    assert torch.equal(denormalized(batch, mean, std)[0], torch.from_numpy(picture))
    near = normalized(torch.from_numpy(picture)[None], mean, std)
    assert (near - batch).abs().max() < 1e-6


def test_segmenter_gives_the_same_labels_with_every_kind_of_file(export, pictures):
    picture = streets(1, (200, 300))[0]
    kinds = [
        export("onnx"),
        export("onnx", **LABELS, size=None),
        export("onnx", batch=2, preprocess=True),
    ]
    for path, exporter in kinds:
        fixed = exporter.request.size
        segmenter = Segmenter(str(path))
        assert segmenter.size == fixed
        expected = Segmenter(exporter.source, backend="reference", size=fixed).predict(picture)
        found = segmenter.predict(picture)
        # Of labels alone, those resized from another size are those of the nearest pixel.
        assert (found == expected).mean() > 0.999
        assert found.dtype == np.uint8 and found.shape == (200, 300)


def test_batches_are_split_and_filled_up(export, pictures):
    path, exporter = export("onnx", batch=2, preprocess=True)
    batch = torch.from_numpy(np.stack(pictures))
    network = ExportedNetwork(path)
    with torch.no_grad():
        normal = torch.from_numpy(np.stack([normalize(p) for p in pictures]))
        expected = exporter.source(normal)
    for given in (batch, normal):
        found = network(given)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-3
    assert (network.predict_labels(batch) == expected.argmax(1)).float().mean() > 0.9995


def test_labels_become_logits_of_one(export, pictures):
    path, _ = export("onnx", dtype="float16", **LABELS)
    network = ExportedNetwork(path)
    batch = torch.from_numpy(pictures[0])[None]
    logits = network(batch)
    assert logits.shape == (1, 19, *SIZE) and (logits.sum(1) == 1).all()
    assert torch.equal(logits.argmax(1), network.predict_labels(batch).long())


def test_what_does_not_fit_is_refused(export):
    path, _ = export("onnx")
    network = ExportedNetwork(path)
    with pytest.raises(ValueError, match=r"net\.onnx takes pictures of 128x256, got 64x64"):
        network(torch.zeros(1, 3, 64, 64))
    for settings, message in (
        ({"weights": "synthetic"}, "holds its own weights"),
        ({"size": (64, 64)}, "takes pictures of 128x256 alone, asked for were 64x64"),
        ({"dtype": torch.float16}, "computes in float32, asked for was torch.float16"),
        ({"backend": "cpu"}, "must be auto or onnxruntime or openvino for a .onnx file, got 'cpu'"),
    ):
        with pytest.raises(ValueError, match=message):
            Segmenter(str(path), **settings)
    with pytest.raises(ValueError, match=r"computes in float32, asked for was torch\.bfloat16"):
        Segmenter(network, dtype=torch.bfloat16)
    any_size, _ = export("onnx", **LABELS, size=None)
    with pytest.raises(ValueError, match=r"net\.onnx takes pictures of at least 57x57, got 8x8"):
        ExportedNetwork(any_size)(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


def foreign_onnx(path):
    node = onnx.helper.make_node("Relu", ["image"], ["logits"])
    ports = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3, 8, 8])
        for n in ("image", "logits")
    ]
    graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_damaged_and_foreign_onnx_files(export, tmp_path, runtime):
    path, _ = export("onnx")
    data = path.read_bytes()
    cases = {
        "missing.onnx": (None, "no such file"),
        "empty.onnx": (b"", "is empty"),
        "text.onnx": (b"not a network " * 99, "cannot read it"),
        "short.onnx": (data[: len(data) // 2], "cannot read it|no metadata named fassd"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(
            (ValueError, FileNotFoundError), match=f"{name}: .*({message})"
        ) as error:
            ExportedNetwork(tmp_path / name, runtime)
        assert "\n" not in str(error.value)
    foreign_onnx(tmp_path / "foreign.onnx")
    with pytest.raises(ExportError, match="no metadata named fassd"):
        ExportedNetwork(tmp_path / "foreign.onnx", runtime)


def test_metadata_that_lies_is_seen(export, tmp_path):
    path, exporter = export("onnx")
    model = onnx.load(path)
    for change, message in (
        ({"classes": exporter.metadata.classes[:7]}, "its metadata promises .*7, 128, 256"),
        ({"output": "labels"}, r"its metadata promises torch\.uint8"),
    ):
        (entry,) = (e for e in model.metadata_props if e.key == "fassd")
        entry.value = replace(exporter.metadata, **change).to_json()
        onnx.save(model, tmp_path / "net.onnx")
        with pytest.raises(ExportError, match=message):
            ExportedNetwork(tmp_path / "net.onnx").run(torch.zeros(1, 3, *SIZE))


@pytest.mark.parametrize(
    ("kind", "runtime"), [("onnx", "onnxruntime"), ("onnx", "openvino"), ("torch", "torch")]
)
def test_threads_do_not_mix_their_pictures(export, kind, runtime):
    path, _ = export(kind, backend="cpu" if kind == "torch" else "reference")
    network, shown = ExportedNetwork(path, runtime), streets(4)
    batches = [torch.from_numpy(normalize(picture))[None] for picture in shown]
    expected = [network(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(network, batches * 6))
    for index, logits in enumerate(found):
        assert torch.equal(logits, expected[index % 4])


def test_autocast_does_not_reach_a_program(export, pictures):
    path, _ = export("torch", backend="cpu")
    network = ExportedNetwork(path)
    batch = torch.from_numpy(normalize(pictures[0]))[None]
    expected = network(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(batch), expected)


def test_a_program_for_any_size_tells_its_smallest(export):
    path, exporter = export("torch", backend="cpu", dtype="bfloat16", size=None)
    network = ExportedNetwork(path)
    least = network.metadata.minimum_size
    assert least >= exporter.source.minimum_size
    assert network(torch.zeros(1, 3, least, least + 9)).shape == (1, 19, least, least + 9)
    assert verify(network, exporter.source, [*streets(1), *streets(1, (122, 182))]).passed
    with pytest.raises(ValueError, match=f"of at least {least}x{least}"):
        network(torch.zeros(1, 3, least - 1, 200))


def test_an_opened_file_goes_into_a_segmenter(export):
    path, _ = export("onnx")
    picture = streets(1, (200, 300))[0]
    expected = Segmenter(path).predict(picture)
    assert np.array_equal(Segmenter(ExportedNetwork(path)).predict(picture), expected)


def test_devices(export):
    for path, _ in (export("openvino", **LABELS), export("torch", backend="cpu")):
        with pytest.raises(ExportError, match="device must be cpu"):
            ExportedNetwork(path, device="cuda")
    with pytest.raises(ExportError, match=r"an exported file ends in \.onnx"):
        ExportedNetwork(__file__)


def test_openvino_files_that_are_damaged(export, tmp_path):
    path, _ = export("openvino", **LABELS)
    target = tmp_path / "net.xml"
    target.write_bytes(path.read_bytes())
    with pytest.raises(ExportError, match=r"net\.xml: its weights net\.bin are missing"):
        ExportedNetwork(target)
    target.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes()[:1000])
    for text in (path.read_text(), path.read_text()[:2000], "<a></a>"):
        target.write_text(text)
        with pytest.raises(ExportError, match="OpenVINO cannot read it: ") as error:
            ExportedNetwork(target)
        assert "src/" not in str(error.value).partition("read it: ")[2][:20]


def changed(record, place, value):
    """A copy of a record with another value at "key" or "key/key/0"."""
    record = copy.deepcopy(record)
    *keys, last = [int(key) if key.isdecimal() else key for key in place.split("/")]
    part = record
    for key in keys:
        part = part[key]
    part[last] = value
    return record


METADATA = Metadata(
    format="onnx",
    variant="fassd_net",
    alpha=2,
    weights=None,
    classes=tuple(LabelClass(f"plant {index}", (index, 2, 3)) for index in range(3)),
    dtype="float32",
    output="logits",
    takes_pictures=False,
    batch=2,
    size=(64, 128),
    minimum_size=32,
    backend=None,
    versions={"torch": "2.13"},
)
BAD_NUMBERS = [0, -1, 10**9, 10**60, 1.5, math.inf, math.nan, True, "1", None, [1], {}]
BAD_TEXTS = [1, None, [], {"a": 1}, 100_000 * "x"]


@pytest.mark.parametrize(
    ("places", "values"),
    [
        (["input/shape/0", "input/shape/2", "input/shape/3", "alpha"], BAD_NUMBERS),
        (["input/minimum_size"], BAD_NUMBERS),
        (["input/shape/1"], [1, 4, "3", None]),
        (
            ["input/shape"],
            [[], [1], [1, 3, 64], [1, 3, -1, 64], [1024, 3, 4096, 4096], "abcd", 5, None],
        ),
        (["input/mean/0", "input/std/2"], [math.nan, math.inf, -math.inf, "1", None, [1]]),
        (["input/mean", "input/std"], [[], [1, 2], 5, None, "abc"]),
        (["classes/1/color/0"], [-1, 256, 1.5, math.inf, math.nan, "1", None, True, 10**60]),
        (["classes/1/color"], [[], [1, 2], [1, 2, 3, 4], "abc", 5, None]),
        (["classes"], [[], {}, "abc", 5, None, [5], 70_000 * [{"name": "a", "color": [1, 2, 3]}]]),
        (["classes/1/name", "variant", "format", "dtype", "output/name"], BAD_TEXTS),
        (["weights", "backend"], [1, [], 100_000 * "x"]),
        (["versions/torch"], BAD_TEXTS),
        (["input/layout"], [*BAD_TEXTS, "NHWC"]),
        (["input/mean_channels"], [*BAD_TEXTS, "GBR"]),
        (["versions"], [5, None, [1], "abc"]),
        (["input", "output"], [5, None, [], "abc"]),
    ],
)
def test_metadata_that_makes_no_sense_is_refused_in_one_line(places, values):
    record = json.loads(METADATA.to_json())
    assert Metadata.from_json(json.dumps(record)) == METADATA
    for place in places:
        for value in values:
            text = json.dumps(changed(record, place, value)).replace("Infinity", "1e999")
            with pytest.raises(ExportError, match="its metadata ") as error:
                Metadata.from_json(text)
            assert len(str(error.value)) < 500 and "\n" not in str(error.value)


DEEP = 100_000 * "["


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "TypeError"),
        ("null", "TypeError"),
        ('{"fassd": 1}', "KeyError: 'input'"),
        (DEEP, "nested too deeply"),
        (METADATA.to_json().replace('"weights": null', f'"weights": {DEEP}'), "nested too deeply"),
        ("9" * 10_000, "10,000 digits"),
    ],
    ids=["nothing", "half", "list", "null", "another", "deep", "deep inside", "long"],
)
def test_metadata_of_something_else(text, reason):
    with pytest.raises(ExportError, match=f"its metadata is not what fassd .* writes .*{reason}"):
        Metadata.from_json(text)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_metadata_that_is_no_text_is_refused(tmp_path, runtime):
    foreign_onnx(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    model.metadata_props.add(key="fassd", value="plant")
    data = model.SerializeToString().replace(b"plant", b"pl\xffnt")
    (tmp_path / "net.onnx").write_bytes(data)
    with pytest.raises(ExportError, match=r"net\.onnx: its metadata is not text"):
        ExportedNetwork(tmp_path / "net.onnx", runtime)


def test_a_batch_that_no_memory_holds_is_refused():
    network = ExportedNetwork.__new__(ExportedNetwork)
    torch.nn.Module.__init__(network)
    network.path = Path("net.onnx")
    network.metadata = replace(METADATA, batch=1024, size=None, minimum_size=1)
    picture = torch.zeros(1).expand(1, 3, 1024, 2048)
    with pytest.raises(ValueError, match="takes 1024 pictures at once, of 1024x2048 more than"):
        network.run(picture)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, "hello", r"net\.pt2: is not a \.pt2 file, or a damaged one"),
        ("a/model.json", "{}", "no metadata named fassd"),
        ("a/fassd.json", '{"fassd": 1}', "its metadata is not what fassd"),
        (
            "a/fassd.json",
            (1 << 24) * " " + "x",
            "has 16,777,217 bytes, at most 16,777,216 are read",
        ),
    ],
    ids=["text", "foreign", "broken", "bomb"],
)
def test_damaged_and_foreign_programs(tmp_path, name, content, message):
    path = tmp_path / "net.pt2"
    if name is None:
        path.write_text(content)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
    with pytest.raises(ExportError, match=message):
        ExportedNetwork(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "tflite"}, "format must be one of onnx, torch, aoti, openvino, tensorrt"),
        ({"dtype": "bfloat16"}, "dtype must be float32, float16, int8 for onnx, got 'bfloat16'"),
        ({"format": "aoti", "dtype": "int8"}, "backend must be auto or cpu for aoti in int8"),
        ({"output": "labels", "num_classes": 300}, "at most 256 classes, and the network has 300"),
        ({"format": "torch", "opset": 18}, "opset only applies to ONNX, and the format is torch"),
        ({"dtype": "int8", "size": None}, "calibrated at one size: give it as HxW, not dynamic"),
        ({"format": "aoti", "backend": "cuda"}, "auto, cpu, reference for aoti, .* got 'cuda'"),
        ({"backend": "cpu"}, "backend does not apply to onnx, .* leave it out, got 'cpu'"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_requests_that_cannot_be(settings, message):
    with pytest.raises(ExportError, match=message):
        Request(**{"model": "fassd_net", "format": "onnx", **settings})


def test_few_pictures_fill_a_batch_of_many():
    request = Request("fassd_net_l2", "onnx", size=SIZE, batch=4, dtype="int8")
    exporter = Exporter(request)
    for count, batches in ((1, 1), (3, 1), (4, 1), (5, 2)):
        found = exporter._batches(streets(count))
        assert [batch.shape for batch in found] == [(4, 3, *SIZE)] * batches
    with pytest.raises(ExportError, match="int8 needs pictures for calibration"):
        exporter.onnx([])


def test_without_operators_auto_is_plain_pytorch_and_the_source_stays(monkeypatch):
    import fassd_kernels

    monkeypatch.setattr(fassd_kernels.ops, "CPU_MISSING", "not built")
    request = Request("fassd_net_l2", "torch", size=SIZE, dtype="float16", backend="auto")
    exporter = Exporter(request)
    assert exporter.metadata.backend is None
    assert next(exporter.network.parameters()).dtype == torch.float16
    assert next(exporter.source.parameters()).dtype == torch.float32
    with pytest.raises(ExportError, match=r"the C\+\+ operators are missing \(not built\)"):
        Exporter(replace(request, backend="cpu"))


def test_what_fails_leaves_the_old_file(tmp_path):
    target = tmp_path / "net.onnx"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="halfway"), staged(target) as unnamed:
        unnamed.write_text("new")
        raise RuntimeError("halfway")
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"] and target.read_text() == "old"
    with staged(target) as unnamed:
        unnamed.write_text("new")
        unnamed.with_suffix(".bin").write_text("weights")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.bin", "net.onnx"]
    assert target.read_text() == "new"


def test_the_trtexec_line(export, tmp_path):
    data = export("onnx")[1].metadata
    line = trtexec(tmp_path / "a b.onnx", tmp_path / "net.engine", data)
    assert line.startswith(f"trtexec '--onnx={tmp_path}/a b.onnx' --saveEngine=")
    assert line.endswith("--noTF32")
    free = replace(data, size=None, dtype="float16", takes_pictures=True)
    assert trtexec(tmp_path / "a.onnx", tmp_path / "b.engine", free).endswith(
        "--fp16 --minShapes=image:1x256x512x3 --optShapes=image:1x1024x2048x3 "
        "--maxShapes=image:1x2048x4096x3"
    )


@pytest.mark.parametrize("form", ["onnx", "torch", "openvino"])
def test_confidence_is_a_second_output(export, form):
    if form == "openvino":
        pytest.importorskip("openvino")
    path, exporter = export(form, **CERTAIN)
    picture = streets(1)[0]
    right = Segmenter(exporter.source, backend="reference").predict(picture, confidence="entropy")
    segmenter = Segmenter(str(path))
    labels, certainty = segmenter.predict(picture, confidence="entropy")
    assert (labels == right[0]).mean() > 0.999
    assert np.abs(certainty.astype(int) - right[1]).max() <= 2
    assert len(np.unique(certainty)) > 20
    np.testing.assert_array_equal(segmenter.predict(picture), labels)
    assert verify(segmenter.model, exporter.source, [picture]).passed
    for confidence in ("margin", "probability"):
        with pytest.raises(ValueError, match="export it with --output logits"):
            segmenter.predict(picture, confidence=confidence)
    with pytest.raises(ValueError, match="without probabilities"):
        segmenter.probabilities(picture)
    if form == "onnx":
        outputs = onnx.load(path).graph.output
        assert [value.name for value in outputs] == ["labels", "confidence"]


def test_metadata_tells_a_measure_where_there_is_one(export):
    _, exporter = export("onnx")
    for output, measure in (("labels", "margin"), ("labels+confidence", None)):
        wrong = replace(exporter.metadata, output=output, measure=measure)
        with pytest.raises(ExportError, match="measure is"):
            Metadata.from_json(wrong.to_json())
    with pytest.raises(ExportError, match="measure must be one of probability, margin, entropy"):
        Request("fassd_net_l2", "onnx", output="labels+confidence", measure="certain")


def test_confidence_of_a_file_of_logits(export):
    """At the temperature of the weights, which the file tells."""
    path, exporter = export("onnx")
    temperature = temperature_of(exporter.source)
    picture = streets(1)[0]
    segmenter = Segmenter(str(path))
    assert segmenter.model.metadata.temperature == temperature
    assert temperature_of(segmenter.model) == temperature
    for measure in ("probability", "margin", "entropy"):
        right = Segmenter(exporter.source).predict(picture, confidence=measure)
        labels, certainty = segmenter.predict(picture, confidence=measure)
        assert (labels == right[0]).mean() > 0.999
        assert np.abs(certainty.astype(int) - right[1]).max() <= 2


def test_a_file_of_confidence_tells_it_at_its_own_size_alone(export):
    path, _ = export("onnx", **CERTAIN)
    segmenter = Segmenter(str(path))
    other = streets(1, (200, 300))[0]
    assert segmenter.predict(other).shape == (200, 300)
    with pytest.raises(ValueError, match="only at the size that it takes"):
        segmenter.predict(other, confidence="entropy")
