"""Programs that compute in bytes, with the ranges of their calibration inside."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from export.conftest import SIZE, streets

import fassd_kernels
from fassd import Segmenter
from fassd.data import normalize
from fassd.export import ExportedNetwork, Exporter, ExportError, Metadata, Request, verify
from fassd_kernels.graphs.steps import repeatable

CALIBRATION = streets(12, split="train")


def prepared(*pictures):
    return torch.from_numpy(np.stack([normalize(picture) for picture in pictures]))


def operators(path):
    graph = torch.export.load(path).graph
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.fixture(scope="module")
def program(export):
    return export("torch", backend="cpu", dtype="int8")


def test_labels_are_those_of_the_network_in_int8(program, pictures):
    path, exporter = program
    segmenter = Segmenter(exporter.source, dtype=torch.int8, calibration=CALIBRATION)
    for picture in pictures:
        assert np.array_equal(Segmenter(path).predict(picture), segmenter.predict(picture))
    x = prepared(pictures[0])
    with torch.no_grad(), repeatable():
        assert torch.equal(ExportedNetwork(path)(x), segmenter.model(x))
    result = verify(ExportedNetwork(path), exporter.source, pictures)
    assert 0.95 < result.labels < 1


def test_bytes_are_in_the_file_and_no_plain_weights(program):
    path, exporter = program
    used = operators(path)
    assert used.count("fassd_kernels.quantized_conv_act.default") > 50
    assert {"fassd_kernels.conv_act.default", "fassd_kernels.upsample.default"} < {*used}
    assert "aten.batch_norm.default" not in used
    assert not any("pack" in name for name in used)
    parameters = sum(p.numel() for p in exporter.source.parameters())
    assert path.stat().st_size < 3 * parameters


def test_the_file_tells_what_it_is_calibrated_on(program, tmp_path):
    data = ExportedNetwork(program[0]).metadata
    assert (data.dtype, data.backend) == ("int8", "cpu")
    assert (data.calibration.pictures, data.calibration.source) == (12, "pictures")
    assert Metadata.from_json(data.to_json()) == data
    older = data.to_json().replace('"calibration"', '"another"')
    assert Metadata.from_json(older).calibration is None
    wrong = data.to_json().replace('"pictures": 12', '"pictures": "many"')
    with pytest.raises(ExportError, match=r"calibration.*pictures"):
        Metadata.from_json(wrong)


@pytest.mark.slow
def test_packages(export, program, pictures):
    path, _ = export("aoti", backend="cpu", dtype="int8")
    x = prepared(pictures[0])
    assert torch.equal(ExportedNetwork(path)(x), ExportedNetwork(program[0])(x))
    assert ExportedNetwork(path).metadata.calibration.pictures == 12


def test_on_another_cpu(program, pictures, tmp_path):
    """Weights are laid out anew for other instructions."""
    path, _ = program
    code = (
        "import sys, numpy as np; from fassd import Segmenter;"
        "np.save(sys.argv[3], Segmenter(sys.argv[1]).predict(np.load(sys.argv[2])))"
    )
    picture, labels = tmp_path / "picture.npy", tmp_path / "labels.npy"
    np.save(picture, pictures[0])
    command = [sys.executable, "-c", code, path, picture, labels]
    for capability in ("avx2", "portable"):
        settings = {**os.environ, "FASSD_KERNELS_CPU": capability}
        subprocess.run(command, check=True, env=settings)
        # Sums in another order round a byte to its neighbour here and there.
        assert (np.load(labels) == Segmenter(path).predict(pictures[0])).mean() > 0.99


def test_frozen_networks_are_the_network(program, pictures):
    _, exporter = program
    fast = fassd_kernels.accelerate(
        exporter.source, dtype=torch.int8, calibration=map(prepared, CALIBRATION[:2])
    )
    x = prepared(pictures[0])
    frozen = fassd_kernels.freeze(fast, (x,))
    assert frozen.state_dict().keys() == fast.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(frozen(x), fast(x))
        hook = fast.base[1].register_forward_hook(lambda *_: None)
        hooked = fassd_kernels.freeze(fast, (x,))
        hook.remove()
        plain = torch.export.export(hooked, (x,)).graph
    assert not any("quantized" in str(node.target) for node in plain.nodes)


def test_refusals(monkeypatch):
    request = Request("fassd_net_l2", "torch", size=SIZE, dtype="int8", backend="auto")
    with pytest.raises(ExportError, match="int8 needs pictures for calibration"):
        Exporter(request).write(None)
    with pytest.raises(ExportError, match=r"int8: calibration\[1\], of shape \(1, 3, 20, 30\)"):
        Exporter(request).write(None, [CALIBRATION[0], CALIBRATION[0][:20, :30]])
    for kind in ("torch", "aoti"):
        with pytest.raises(ExportError, match=f"auto or cpu for {kind} in int8.*got 'reference'"):
            replace(request, format=kind, backend="reference")
    with pytest.raises(ExportError, match="int8 is calibrated at one size"):
        replace(request, size=None)
    monkeypatch.setattr(fassd_kernels.ops, "CPU_MISSING", "not built")
    with pytest.raises(ExportError, match=r"missing \(not built\): give another format \(onnx, "):
        Exporter(request)
