"""torch.export programs and AOTInductor packages, with our operators in them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export.conftest import CERTAIN, LABELS, SIZE, streets
from PIL import Image

import fassd_kernels
from fassd.export import ExportedNetwork, ExportError, verify
from fassd.export.program import EXTRA_FILE
from fassd.io.palette import overlay

ROOT = Path(__file__).parents[2]


def calls(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "cpu"},
        {"backend": "cpu", "dtype": "float16", **CERTAIN},
        {"backend": "reference", **LABELS},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_programs(export, pictures, settings):
    path, exporter = export("torch", **settings)
    result = verify(ExportedNetwork(path), exporter.source, pictures)
    assert result.passed, str(result)
    if exporter.request.dtype == "float32":
        assert result.labels > 0.9995  # but for near ties
    used = calls(torch.export.load(path))
    ours = {name for name in used if name.startswith("fassd_kernels.")}
    if settings["backend"] == "reference":
        assert not ours
        return
    assert {"fassd_kernels.hardblock.default", "fassd_kernels.mda.default"} <= ours
    # Nothing folds or lays out weights when the program runs.
    assert "aten.rsqrt.default" not in used and "fassd_kernels.pack_weight.default" not in used


def test_a_program_with_damaged_weights_is_refused(export, tmp_path):
    path, _ = export("torch", backend="reference", **LABELS)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.pt2").write_bytes(content)
    with pytest.raises(ExportError, match=r"flipped\.pt2: is damaged: \S+ in it does not match"):
        ExportedNetwork(tmp_path / "flipped.pt2")
    extra = {EXTRA_FILE: ""}
    program = torch.export.load(path, extra_files=extra)
    with torch.no_grad():
        program.state_dict["network.finalConv.bias"][3] = float("nan")
    torch.export.save(program, tmp_path / "nan.pt2", extra_files=extra)
    with pytest.raises(ExportError, match=r"holds nan in network\.finalConv\.bias \(1 of 19"):
        ExportedNetwork(tmp_path / "nan.pt2")


def test_a_program_gives_exactly_what_the_accelerated_network_gives(export, pictures):
    path, exporter = export("torch", backend="cpu")
    fast = fassd_kernels.accelerate(exporter.source, backend="cpu")
    network = ExportedNetwork(path)
    for seed in range(2):
        batch = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            assert torch.equal(network(batch), fast(batch))


def test_freeze_leaves_the_model_and_refuses_training(export):
    _, exporter = export("torch", backend="cpu")
    fast = fassd_kernels.accelerate(exporter.source, backend="cpu")
    x = torch.randn(1, 3, *SIZE)
    frozen = fassd_kernels.freeze(fast, (x,))
    with torch.no_grad():
        assert torch.equal(frozen(x), fast(x))
        plain, constant = (torch.export.export(each, (x,)) for each in (fast, frozen))
        with torch.no_grad():
            for parameter in frozen.parameters():
                parameter.zero_()  # a program holds the weights of its making
        assert torch.equal(constant.module()(x), fast(x))
    assert len(constant.graph.nodes) < len(plain.graph.nodes) / 2
    with pytest.raises(ValueError, match=r"training mode; call model\.eval\(\) first"):
        fassd_kernels.freeze(fast.train(), (x,))


@pytest.fixture(scope="module")
def package(export):
    return export("aoti", backend="cpu", **LABELS)


def test_packages(package, pictures):
    path, exporter = package
    network = ExportedNetwork(path)
    assert (network.metadata.format, network.metadata.backend) == ("aoti", "cpu")
    assert verify(network, exporter.source, pictures).labels > 0.9995  # but for near ties


@pytest.mark.slow
def test_a_package_of_plain_pytorch_needs_no_operators(export, pictures):
    path, exporter = export("aoti", backend="reference", size=None)
    assert verify(ExportedNetwork(path), exporter.source, streets(1, (100, 182))).passed
    program = (
        "import sys, torch; network = torch._inductor.aoti_load_package(sys.argv[1]);"
        "print(tuple(network(torch.zeros(1, 3, 96, 160)).shape), 'fassd_kernels' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(1, 19, 96, 160) False"


@pytest.fixture(scope="module")
def segment(tmp_path_factory):
    """The example program, built."""
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    assert cmake, "cmake is missing: pip install 'fassd-net[dev]'"
    folder = tmp_path_factory.mktemp("cpp")
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (
        [cmake, "-S", ROOT / "examples/cpp", "-B", folder, "-DCMAKE_BUILD_TYPE=Release", prefix],
        [cmake, "--build", folder],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "segment"


def test_cpp(segment, package, pictures, tmp_path):
    path, _ = package
    Image.fromarray(pictures[0]).save(tmp_path / "street.ppm")
    Image.fromarray(pictures[0][:-8]).save(tmp_path / "small.ppm")
    (tmp_path / "damaged.pt2").write_bytes(path.read_bytes()[:100_000])
    found = subprocess.run(
        [sys.executable, "-m", "fassd_kernels", "--library"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    library = found.stdout.strip()

    def run(package, picture, *more):
        names = (package, tmp_path / picture, tmp_path / "labels.pgm", tmp_path / "overlay.ppm")
        return subprocess.run([segment, *names, *more], capture_output=True, text=True)

    assert "give their library" in run(path, "street.ppm").stderr
    small = run(path, "small.ppm", library)
    assert (small.returncode, "128x256, the picture is 120x256" in small.stderr) == (2, True)
    damaged = run(tmp_path / "damaged.pt2", "street.ppm", library)
    assert damaged.returncode == 1 and damaged.stderr.count("\n") == 1, damaged.stderr
    assert "is no binary PPM" in run(path, "damaged.pt2", library).stderr
    assert not (tmp_path / "labels.pgm").exists()

    done = run(path, "street.ppm", library)
    assert done.returncode == 0, done.stderr
    assert "128x256" in done.stdout and " ms of 10" in done.stdout
    labels = np.array(Image.open(tmp_path / "labels.pgm"))
    with torch.no_grad():
        expected = ExportedNetwork(path).predict_labels(torch.from_numpy(pictures[0])[None])
    assert np.array_equal(labels, expected[0].numpy())
    painted = np.array(Image.open(tmp_path / "overlay.ppm")).astype(int)
    assert np.abs(painted - overlay(pictures[0], labels, 0.5)).max() <= 1
