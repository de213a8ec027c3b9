"""ONNX files: what is in them, and what ONNX Runtime and OpenVINO make of them."""

from __future__ import annotations

import collections
import json
import logging

import numpy as np
import pytest
import torch
from export.conftest import LABELS, OLD_BATCH, SIZE, streets
from kernels.conftest import short

import fassd
import fassd_kernels
from fassd import list_models
from fassd.export import ExportedNetwork, Exporter, ExportError, Metadata, Request, verify

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

RUNTIMES = ("onnxruntime", "openvino")
KINDS = {
    "float32 logits": {},
    "float32 labels, any size": {"size": None, **LABELS},
    "float16 labels": {"dtype": "float16", **LABELS},
    # Operators of the oldest kind that serves.
    "float16 logits of a batch of two": OLD_BATCH,
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
        assert result.labels > 0.9995  # but for near ties
        assert result.logits is None or result.logits < 2e-5
    assert (result.logits is None) == (exporter.request.output == "labels")


def test_a_fused_network_exports_with_a_free_batch_from_an_example_of_one(tmp_path):
    model = short()
    torch.onnx.export(
        fassd_kernels.accelerate(model),
        (torch.randn(1, 3, 64, 96),),
        tmp_path / "net.onnx",
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for batch in (1, 3):
        x = torch.randn(batch, 3, 64, 96)
        (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(x), rtol=0, atol=1e-4)


# All modules that there are, with those of fassd_net_l2, which all other tests export.
SAMPLE = "baseline_aspp_mda"


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=[] if model == SAMPLE else pytest.mark.slow)
        for model in list_models()
        if model != "fassd_net_l2"
    ],
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


def test_an_accelerated_network_exports_by_itself_to_the_same_graph(caplog):
    model = short()
    plain, fast = (
        exported_by_pytorch(network, torch.zeros(1, 3, 64, 96), caplog)
        for network in (model, fassd_kernels.accelerate(model))
    )
    assert operators(fast) == operators(plain)


X = torch.randn(2, 6, 8, 12, generator=torch.Generator().manual_seed(1))
WEIGHT = torch.randn(6, 12, 3, 3, generator=torch.Generator().manual_seed(0)) / 8
MEAN, STD = [103.5, 116.3, 123.7], [57.4, 57.1, 58.4]
OPERATORS = {
    "upsample": lambda ops, x, w, levels: ops.upsample(x, (21, 34)),
    "upsample_argmax": lambda ops, x, w, levels: ops.upsample_argmax(x, (21, 34)),
    "conv_act": lambda ops, x, w, levels: ops.conv_act([x, x], w, stride=[2, 2], activation="relu"),
    "asymmetric_conv": lambda ops, x, w, levels: ops.asymmetric_conv(
        x, w[:, :6, :, :1], w[:, :, :1][:, :6], dilation=2
    ),
    "upsample_conv1x1": lambda ops, x, w, levels: ops.upsample_conv1x1(
        [x[:, :, :3, :4]], [x], w[:, :, :1, :1], activation="relu"
    ),
    "hardblock": lambda ops, x, w, levels: ops.hardblock(
        x, [w[:4, :6], w[:3, :10]], [x[0, 0, 0, :4], x[0, 0, 0, :3]]
    ),
    "normalize": lambda ops, x, w, levels: ops.normalize(
        levels, mean=MEAN, std=STD, dtype=torch.float32
    ),
    "normalize_conv_act": lambda ops, x, w, levels: ops.normalize_conv_act(
        levels, w[:, :3], mean=MEAN, std=STD
    ),
}


def levels_of(x):
    """A picture of bytes."""
    return x.abs().mul(50).byte()[:, :3].permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_called_by_itself_decomposes(name, caplog):
    class Called(torch.nn.Module):
        def forward(self, x):
            return OPERATORS[name](torch.ops.fassd_kernels, x, WEIGHT, levels_of(x))

    expected = Called()(X).numpy()
    model = exported_by_pytorch(Called(), X, caplog)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.abs(found.astype(float) - expected).max() < 1e-4


def test_operators_stay_whole_in_inductor(monkeypatch):
    """Even where CI is set, with which Inductor holds a decomposition for a mistake.

    Nothing else is in the graph, for which C++ would have to be compiled.
    """
    import torch._inductor.lowering as lowering
    from torch._inductor.utils import run_and_get_code

    ops = torch.ops.fassd_kernels
    monkeypatch.setenv("CI", "true")
    for name in OPERATORS:  # as in a process that has compiled nothing yet
        monkeypatch.delitem(lowering.lowerings, getattr(ops, name).default, raising=False)

    def called(x, levels):
        return [call(ops, x, WEIGHT, levels) for call in OPERATORS.values()]

    given = X, levels_of(X)
    with torch._inductor.config.patch(force_disable_caches=True):
        found, code = run_and_get_code(torch.compile(called, fullgraph=True), *given)
    for name, one, expected in zip(OPERATORS, found, called(*given), strict=True):
        assert f"torch.ops.fassd_kernels.{name}.default(" in "".join(code)
        assert one.dtype == expected.dtype and (one.float() - expected).abs().max() < 1e-4


def test_pictures_to_labels_of_an_accelerated_network(caplog):
    fast = fassd_kernels.accelerate(short())

    class Labelling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = fast

        def forward(self, pictures):
            return self.network.label_pictures(pictures, MEAN, STD)

    model = exported_by_pytorch(Labelling(), torch.zeros(1, 64, 96, 3, dtype=torch.uint8), caplog)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert operators(model)["ArgMax"] == 1


def test_bytes_come_in_and_go_out_and_are_nowhere_between(export):
    """TensorRT has them nowhere else, and makes them of floats alone."""
    path, _ = export("onnx", **KINDS["float16 labels"])
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input)}
    kinds |= {v.name: v.data_type for v in graph.initializer}
    inside = [name for name, kind in kinds.items() if kind == onnx.TensorProto.UINT8]
    assert inside == ["image"]
    (last,) = (node for node in graph.node if "labels" in node.output)
    assert last.op_type == "Cast" and kinds[last.input[0]] == onnx.TensorProto.FLOAT


def test_int8_for_tensorrt_is_symmetric(graphs):
    request = Request(
        "fassd_net_l2", "tensorrt", weights="streets", size=SIZE, dtype="int8", **LABELS
    )
    model = Exporter(request).onnx(streets(4, split="train"))
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [constants[node.input[2]] for node in pairs]
    assert len(zeros) > 100
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8)}
    assert not any(zero.any() for zero in zeros)


def test_old_opsets(export):
    path, _ = export("onnx", **OLD_BATCH)
    assert onnx.load(path).opset_import[0].version == 16
    with pytest.raises(ExportError, match=r"opset must be 16 to 25, got 11: older ones lack"):
        Exporter(Request("fassd_net_l2", "onnx", size=SIZE, opset=11)).onnx()
    with pytest.raises(ExportError, match=r"opset must be 16 to 25, got 99$"):
        Exporter(Request("fassd_net_l2", "onnx", size=SIZE, opset=99)).onnx()


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_int8_agrees_with_float_on_held_out_streets(export, kind, capsys):
    if kind == "openvino":
        pytest.importorskip("nncf")
    path, exporter = export(kind, dtype="int8", **LABELS)
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
    path, exporter = export("openvino", dtype=dtype, **LABELS)
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
    assert json.loads(entry.value)["input"]["shape"] == [1, -1, -1, 3]
    assert json.loads(entry.value)["input"]["mean"] == pytest.approx([103.53, 116.28, 123.675])
    assert (found.variant, found.weights, found.size) == ("fassd_net_l2", "streets", None)
    sides = [d.dim_param or d.dim_value for d in ports(onnx.load(path).graph.input)]
    assert sides == [1, "height", "width", 3]
    assert [c.name for c in found.classes[:2]] == ["road", "sidewalk"]
    assert found.versions["fassd"] == fassd.__version__
    assert found.versions["torch"] == torch.__version__
