"""FASSD_KERNELS_BACKEND and FASSD_KERNELS_DISABLE, which speak for all modules at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fassd
import fassd_kernels
from fassd.models import MDA
from fassd.models.layers import ConvLayer
from fassd.training import loss
from fassd_kernels import BackendError, ops
from fassd_kernels.backends import backends, choose, disabled, meant, say_disabled, switches
from fassd_kernels.modules import training
from fassd_kernels.runtime.stream import CameraNetwork

BACKEND, DISABLE = "FASSD_KERNELS_BACKEND", "FASSD_KERNELS_DISABLE"
Switch = Callable[..., None]


def forget() -> None:
    """Variables that were read."""
    for read in (switches, say_disabled):
        read.cache_clear()


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Switch]:
    """A function that sets variables, as for a new process."""

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget()

    for name in (BACKEND, DISABLE):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield put
    monkeypatch.undo()
    forget()


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operator may be asked for, of any backend."""

    def fail(*arguments: Any) -> Any:
        raise AssertionError(f"an operator was asked for: {arguments}")

    monkeypatch.setattr(ops, "operator", fail)
    monkeypatch.setattr(training, "norm_act", fail)
    monkeypatch.setattr(training, "resize", fail)


def accelerated(model: nn.Module, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return fassd_kernels.accelerate(model, **options)


def network() -> Any:
    torch.manual_seed(0)
    return fassd.create_model("fassd_net_l2", num_classes=5).eval()


def targets(module: nn.Module, x: Tensor) -> set[str]:
    """The operators in an exported program."""
    with torch.no_grad():
        program = torch.export.export(module, (x,))
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("value", ["", "0"])
def test_off_is_off(switch: Switch, value: str) -> None:
    switch(FASSD_KERNELS_DISABLE=value, FASSD_KERNELS_BACKEND="")
    assert not disabled()
    assert meant("auto") == "auto"


def test_disabled_says_so_once(switch: Switch) -> None:
    switch(FASSD_KERNELS_DISABLE="1")
    model = MDA(8, 2).eval()
    with pytest.warns(RuntimeWarning, match="DISABLE=1: modules compute by plain PyTorch"):
        fused = fassd_kernels.accelerate(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fassd_kernels.accelerate(model)
    assert "backend=auto (disabled)" in repr(fused)


@pytest.mark.usefixtures("untouched")
def test_disabled_networks_are_plain_pytorch(switch: Switch) -> None:
    switch(FASSD_KERNELS_DISABLE="1", FASSD_KERNELS_BACKEND="cuda")
    model, x = network(), torch.randn(2, 3, 64, 70)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(accelerated(model)(x), expected)
        labels = accelerated(model, output="labels")(x)
        assert torch.equal(labels, expected.argmax(1).to(torch.uint8))
        both = accelerated(model, output="labels+confidence")(x)
        assert torch.equal(both[:, 0], labels)
    model.train()
    accelerated(model)(x).sum().backward()


@pytest.mark.usefixtures("untouched")
def test_disabled_modules_are_plain_pytorch(switch: Switch) -> None:
    """A module that insists on a backend, and anybody's network, which is not even captured."""
    switch(FASSD_KERNELS_DISABLE="1")
    x = torch.randn(1, 8, 9, 11)
    block = MDA(8, 2).eval()
    foreign = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    captured = accelerated(foreign)
    with torch.no_grad():
        assert torch.equal(fassd_kernels.FusedMDA.from_reference(block, "cpu")(x), block(x))
        assert torch.equal(captured(x), foreign(x))
        assert torch.equal(torch.compile(foreign, backend="fassd_kernels")(x), foreign(x))
    assert captured._compiled is None
    logits = torch.randn(1, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert not loss._is_compiled_for(logits)


def test_disabled_frames_are_normalised_by_pytorch(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = torch.randint(0, 256, (1, 64, 70, 3), dtype=torch.uint8)
    plain = CameraNetwork(network())
    expected = plain(frames)
    switch(FASSD_KERNELS_DISABLE="1")
    monkeypatch.setattr(ops, "normalize", None)
    assert (plain(frames) == expected).float().mean() > 0.999
    assert (CameraNetwork(accelerated(network()))(frames) == expected).float().mean() > 0.999


@pytest.mark.parametrize(
    ("variables", "calls"),
    [({DISABLE: "1"}, False), ({BACKEND: "reference"}, False), ({BACKEND: "cpu"}, True)],
)
def test_compilers_and_exporters_see_what_is_switched(
    switch: Switch, variables: dict[str, str], calls: bool
) -> None:
    if calls and not backends()["cpu"].available:
        pytest.skip(backends()["cpu"].reason)
    switch(**variables)
    model, x = ConvLayer(3, 4).eval(), torch.randn(1, 3, 8, 9)
    fused = accelerated(model)
    assert any("fassd_kernels" in name for name in targets(fused, x)) == calls
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(fused, fullgraph=True, backend="eager")(x)
        torch.testing.assert_close(compiled, model(x), rtol=1e-5, atol=1e-5)


def test_a_backend_for_all_modules(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    switch(FASSD_KERNELS_BACKEND="reference")
    asked: list[str] = []
    operator = ops.operator
    monkeypatch.setattr(ops, "operator", lambda n, b: (asked.append(b), operator(n, b))[1])
    fused = accelerated(network())
    assert "backend=auto (reference)" in repr(fused.DAPF)
    with torch.no_grad():
        fused(torch.randn(1, 3, 64, 64))
    assert set(asked) == {"reference"}
    assert meant("cpu") == "cpu"  # who names one in code gets it
    assert choose("auto", "cpu", "dapf") == "reference"


def test_a_backend_that_cannot_run_says_who_asked(switch: Switch) -> None:
    switch(FASSD_KERNELS_BACKEND="cpu")
    if backends()["cpu"].available:
        with pytest.raises(BackendError, match=r"'cpu' \(FASSD_KERNELS_BACKEND\) cannot run dapf"):
            choose("auto", "meta", "dapf")
    switch(FASSD_KERNELS_BACKEND="cuda")
    if not backends()["cuda"].available:
        with pytest.raises(BackendError, match=r"'cuda' \(FASSD_KERNELS_BACKEND\): \S+"):
            fassd_kernels.accelerate(network())
        with pytest.raises(BackendError, match=r"'cuda' \(FASSD_KERNELS_BACKEND\): \S+"):
            fassd_kernels.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({DISABLE: "yes"}, "FASSD_KERNELS_DISABLE is 'yes'; expected 0, 1 or nothing"),
        (
            {BACKEND: "gpu"},
            "FASSD_KERNELS_BACKEND is 'gpu'; expected one of auto, cpu, cuda, triton, reference",
        ),
    ],
)
def test_unknown_values_are_refused(
    switch: Switch, variables: dict[str, str], message: str
) -> None:
    switch(**variables)
    with pytest.raises(BackendError, match=message):
        fassd_kernels.accelerate(network())
    with pytest.raises(BackendError, match=message):
        fassd_kernels.FusedMDA(8, 2).eval()(torch.zeros(1, 8, 4, 4))
