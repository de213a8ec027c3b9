"""ONNX files: what is in them, and what ONNX Runtime and OpenVINO make of them."""

from __future__ import annotations

import collections
import logging

import numpy as np
import pytest
import torch
from export.conftest import SIZE, streets

import fassd
import fassd_kernels
from fassd import list_models
from fassd.export import ExportedNetwork, Exporter, ExportError, Metadata, Request, verify

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

RUNTIMES = ("onnxruntime", "openvino")
KINDS = {
    "float32 logits": {},
    "float32 labels, any size": {"size": None, "output": "labels", "preprocess": True},
    "float16 logits": {"dtype": "float16"},
    "float16 labels": {"dtype": "float16", "output": "labels", "preprocess": True},
    "a batch of two": {"batch": 2, "preprocess": True},
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(export, pictures, kind, runtime):
    path, exporter = export("onnx", **KINDS[kind])
    network = ExportedNetwork(path, runtime)
    shown = pictures if exporter.request.size else [*pictures, *streets(1, (100, 182))]
    result = verify(network, exporter.source, shown)
    assert result.passed, str(result)
    if exporter.request.dtype == "float32":
        assert result.labels == 1
        assert result.logits is None or result.logits < 2e-5
    assert (result.logits is None) == (exporter.request.output == "labels")


SLOW = [m for m in list_models() if m not in ("fassd_net_l2", "fassd_net", "baseline_aspp_mda")]


@pytest.mark.parametrize(
    "model",
    ["fassd_net", "baseline_aspp_mda", *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW)],
)
def test_every_kind_of_network(model, tmp_path, pictures):
    exporter = Exporter(Request(model, "onnx", size=SIZE))
    exporter.write(tmp_path / "net.onnx")
    for runtime in RUNTIMES:
        network = ExportedNetwork(tmp_path / "net.onnx", runtime)
        result = verify(network, exporter.source, pictures[:1], labels_limit=0.99)
        assert result.passed and result.logits < 2e-4, str(result)


def operators(model):
    return collections.Counter(node.op_type for node in model.graph.node)


def test_graph_is_standard_and_lean(export):
    path, exporter = export("onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    # Those in front of a convolution: two in each of three MDAs. All others are folded.
    assert operators(model)["BatchNormalization"] == 6
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in exporter.source.modules())
    assert norms > 60
    resizes = [node for node in model.graph.node if node.op_type == "Resize"]
    assert len(resizes) == 4
    for node in resizes:
        settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert settings["coordinate_transformation_mode"] == b"align_corners"
        assert settings["mode"] == b"linear"
    assert [i.name for i in model.graph.input] == ["image"]
    assert [o.name for o in model.graph.output] == ["logits"]


def exported_by_pytorch(module, example, caplog):
    caplog.set_level(logging.ERROR, "torch.onnx")
    program = torch.onnx.export(module.eval(), (example,), dynamo=True, verbose=False)
    return program.model_proto


def test_an_accelerated_network_exports_by_itself_to_the_same_graph(export, caplog):
    path, exporter = export("onnx")
    fast = fassd_kernels.accelerate(exporter.source)
    model = exported_by_pytorch(fast, torch.zeros(1, 3, *SIZE), caplog)
    assert operators(model) == operators(onnx.load(path))
    labels = fassd_kernels.accelerate(exporter.source, output="labels")
    model = exported_by_pytorch(labels, torch.zeros(1, 3, *SIZE), caplog)
    assert operators(model)["ArgMax"] == 1


def test_an_operator_called_by_itself_decomposes(caplog):
    import onnxruntime

    class Enlarged(torch.nn.Module):
        def forward(self, x):
            return torch.ops.fassd_kernels.upsample(x.relu(), (21, 34))

    x = torch.randn(2, 5, 8, 13)
    model = exported_by_pytorch(Enlarged(), x, caplog)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.abs(found - Enlarged()(x).numpy()).max() < 1e-5


def test_old_opsets(export, pictures):
    path, exporter = export("onnx", opset=16)
    assert onnx.load(path).opset_import[0].version == 16
    assert verify(ExportedNetwork(path), exporter.source, pictures[:1]).passed
    with pytest.raises(ExportError, match=r"opset must be 16 to 25, got 11: older ones lack"):
        Exporter(Request("fassd_net_l2", "onnx", size=SIZE, opset=11)).onnx()
    with pytest.raises(ExportError, match=r"opset must be 16 to 25, got 99$"):
        Exporter(Request("fassd_net_l2", "onnx", size=SIZE, opset=99)).onnx()


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_int8_agrees_with_float_on_held_out_streets(export, kind, capsys):
    if kind == "openvino":
        pytest.importorskip("nncf")
    path, exporter = export(kind, dtype="int8", output="labels", preprocess=True)
    result = verify(ExportedNetwork(path), exporter.source, streets(8))
    with capsys.disabled():
        print(f"\nint8 {kind} against float32, 8 streets of the val split, the worst: {result}")
    assert result.labels > 0.95
    assert path.stat().st_size < 3_500_000
    if kind == "onnx":
        counted = operators(onnx.load(path))
        assert counted["QuantizeLinear"] > 50 and counted["DequantizeLinear"] > 50


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_openvino_files(export, pictures, dtype):
    path, exporter = export("openvino", dtype=dtype, output="labels", preprocess=True)
    network = ExportedNetwork(path)
    assert network.metadata.format == "openvino"
    assert verify(network, exporter.source, pictures).passed
    size = path.with_suffix(".bin").stat().st_size
    parameters = sum(p.numel() for p in exporter.source.parameters())
    assert size < parameters * (4.2 if dtype == "float32" else 2.2)


def ports(values):
    (value,) = values
    return value.type.tensor_type.shape.dim


def test_metadata_is_in_the_file(export):
    path, exporter = export("onnx", **KINDS["float32 labels, any size"])
    (entry,) = (e for e in onnx.load(path).metadata_props if e.key == "fassd")
    found = Metadata.from_json(entry.value)
    assert found == exporter.metadata
    assert (found.variant, found.weights, found.size) == ("fassd_net_l2", "synthetic", None)
    sides = [d.dim_param or d.dim_value for d in ports(onnx.load(path).graph.input)]
    assert sides == [1, "height", "width", 3]
    assert [c.name for c in found.classes[:2]] == ["road", "sidewalk"]
    assert found.versions["fassd"] == fassd.__version__
    assert found.versions["torch"] == torch.__version__
