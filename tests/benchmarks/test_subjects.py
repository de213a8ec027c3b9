"""What the GPU report measures, on a CPU: every form of a subject that runs here agrees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fassd
import fassd_kernels
from benchmarks.probes import foreign
from fassd.bench import forms as peers
from fassd.bench.cases import Bench, Planned, measure_case, planned_launches, relative_error
from fassd.bench.forms import CudnnConvReLU, UnavailableError, randomised, with_cudnn_relus
from fassd.bench.stopwatch import Sampling
from fassd.bench.subjects import MODULES, OPERATORS, Case, input_set, subject_of

CPU = torch.device("cpu")
BENCH = Bench(CPU, Sampling(rounds=2, sample_ms=0.1), compiler="aot_eager")

needs_cpu_kernels = pytest.mark.skipif(
    not fassd_kernels.backends()["cpu"].available, reason=fassd_kernels.backends()["cpu"].reason
)


@needs_cpu_kernels
@pytest.mark.parametrize("name", [*OPERATORS, "normalize"])
def test_an_operator_of_ours_is_what_pytorch_does(name):
    case = Case("operators", name, 64, 64, "float32", batch=2)
    data = measure_case(case, "ours", BENCH)
    eager, _, native = data["candidates"]
    assert eager["match"] and native["match"], data
    assert all(shape[0] == 2 for shape in data["input_shapes"])


@needs_cpu_kernels
@pytest.mark.parametrize("name", MODULES)
def test_a_module_of_ours_is_what_pytorch_does(name):
    data = measure_case(Case("modules", name, 64, 64, "float32"), "ours", BENCH)
    assert [form["match"] for form in data["candidates"] if "match" in form] == [True, True]


def test_labels_are_compared_by_their_share():
    labels = torch.arange(200).view(2, 10, 10)
    other = labels.clone()
    other[0, 0, 0] = 7
    assert relative_error(other.to(torch.uint8), labels) == pytest.approx(1 / 200)


# --- cuDNN's convolution with ReLU ----------------------------------------------------------------


@pytest.fixture
def cudnn_on_the_cpu(monkeypatch):
    """What cuDNN computes, so that who calls it can be tested without a GPU."""

    def forward(self: CudnnConvReLU, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))

    monkeypatch.setattr(CudnnConvReLU, "forward", forward)


@pytest.mark.parametrize("name", ["DAPF(224)", "ASPP(224)", "HarDBlock base.4"])
def test_a_module_with_cudnn_relus_is_the_same(name, cudnn_on_the_cpu):
    place = MODULES[name]
    module = randomised(place.build())
    fused = with_cudnn_relus(peers.fold_batch_norms(module))
    x = torch.randn(1, place.channels, 12, 12)
    with torch.no_grad():
        assert relative_error(fused(x), module(x)) < 1e-5
    convolutions = sum(isinstance(layer, torch.nn.Conv2d) for layer in module.modules())
    assert sum(isinstance(part, CudnnConvReLU) for part in fused.modules()) == convolutions


@pytest.mark.parametrize("name", ["fassd_net", "baseline_aspp_mda"])
def test_a_network_with_cudnn_relus_is_the_same(name, cudnn_on_the_cpu):
    model = randomised(fassd.create_model(name))
    fused = with_cudnn_relus(peers.fold_batch_norms(model))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) < 1e-5


def test_the_call_of_cudnn_fits_its_schema():
    """Reached with the arguments in order; only its kernel is missing on a CPU."""
    conv = torch.nn.Conv2d(4, 8, 3, padding=1)
    with pytest.raises(NotImplementedError, match=r"cudnn_convolution_relu.*'CPU' backend"):
        CudnnConvReLU(conv)(torch.randn(1, 4, 5, 5))


# --- launches -------------------------------------------------------------------------------------


def test_planned_launches_are_those_of_the_kernels():
    pytest.importorskip("triton")
    module = randomised(fassd.models.DAPF(32))
    from fassd_kernels.triton.dapf import dapf

    packed = fassd_kernels.FusedDAPF.from_reference(module).pack(torch.float16)
    x = torch.randn(1, 32, 16, 16, dtype=torch.float16).to(memory_format=torch.channels_last)

    def call(x: Tensor) -> Tensor:
        return dapf(x, **packed)

    launches = planned_launches(call, (x,))
    assert {launch.kernel for launch in launches} <= {"conv_act_kernel", "asymmetric_conv_kernel"}
    # At the least: the input is read, the output is written.
    assert sum(launch.bytes for launch in launches) > 2 * x.nbytes
    weights = sum(weight.numel() for weight in packed["weights"])
    # Taps in the padding are not counted: every dilation here reaches over part of the map.
    assert 0 < sum(launch.operations for launch in launches) <= 2 * 16 * 16 * weights


def test_what_is_not_ours_is_found_out():
    planned = [Planned("conv_act_kernel", 1, 1), Planned("upsample_kernel", 1, 1)]
    seen = ["conv_act_kernel", "CatArrayBatchedCopy", "upsample_kernel", "CatArrayBatchedCopy"]
    assert foreign(seen, planned) == {"CatArrayBatchedCopy": 2}
    assert foreign(seen[::2], planned) == {}


# --- a runner with a graph of its own -------------------------------------------------------------


def test_a_runner_without_its_graph_has_failed(monkeypatch):
    def without_graph(form: peers.Form) -> peers.Candidate:
        module = form.module
        runner = fassd_kernels.GraphRunner(module)
        return peers.Candidate("triton-graph", runner, own_graph=True)

    monkeypatch.setitem(peers.BUILDERS, "triton-graph", without_graph)
    case = Case("modules", "MDA(63, 2)", 64, 64, "float32")
    forms = {form["name"]: form for form in measure_case(case, "ours", BENCH)["candidates"]}
    assert forms["triton-graph"]["status"] == "failed"
    assert "without a CUDA graph" in forms["triton-graph"]["reason"]
    assert forms["eager"]["match"]


def test_triton_takes_tensors_of_its_device_only():
    subject = subject_of(Case("modules", "MDA(63, 2)", 64, 64, "float16"), CPU, "inductor")
    with pytest.raises(UnavailableError, match="backend triton"):
        subject.candidate("triton")


def test_input_sets_are_seeded_and_differ():
    case = Case("operators", "upsample_conv1x1 conv1x1_up.2", 64, 128, "float16", batch=3)
    subject = subject_of(case, CPU, "inductor")
    low, skip = input_set(0, subject, torch.float16, CPU)
    assert low.shape == (3, 78, 8, 16) and skip.shape == (3, 48, 16, 32)
    assert torch.equal(low, input_set(0, subject, torch.float16, CPU)[0])
    assert not torch.equal(low, input_set(1, subject, torch.float16, CPU)[0])
