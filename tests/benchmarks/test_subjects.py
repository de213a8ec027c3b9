"""What the GPU report measures, on a CPU: every form of a subject that runs here agrees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fassd
import fassd_kernels
from benchmarks.probes import foreign
from fassd.bench.candidates import FORMS, BuildContext, Candidate, UnavailableError
from fassd.bench.cases import Bench, measure_case
from fassd.bench.folding import CudnnConvReLU, fold_batch_norms, randomised, with_cudnn_relus
from fassd.bench.plain import Normalize
from fassd.bench.subjects import MODULES, OPERATORS, PICTURES, Case, subject_of
from fassd.models.clock import Sampling
from fassd_kernels.tuning.accuracy import relative_error
from fassd_kernels.tuning.calls import launches_of

CPU = torch.device("cpu")
BENCH = Bench(CPU, Sampling(rounds=2, sample_ms=0.1), compiler="aot_eager")

needs_cpu_kernels = pytest.mark.skipif(
    not fassd_kernels.backends()["cpu"].available, reason=fassd_kernels.backends()["cpu"].reason
)


@needs_cpu_kernels
@pytest.mark.parametrize("name", [*OPERATORS, *PICTURES, *MODULES])
def test_ours_is_what_pytorch_does(name):
    case = Case("modules" if name in MODULES else "operators", name, 64, 64, "float32", batch=2)
    data = measure_case(case, "ours", BENCH)
    matches = [form["match"] for form in data["candidates"] if "match" in form]
    assert matches == [True, True], data  # eager, native
    assert all(shape[0] == 2 for shape in data["input_shapes"])


# --- cuDNN's convolution with ReLU ----------------------------------------------------------------


@pytest.fixture
def cudnn_on_the_cpu(monkeypatch):
    """What cuDNN computes, so that who calls it can be tested without a GPU."""

    def forward(self: CudnnConvReLU, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))

    monkeypatch.setattr(CudnnConvReLU, "forward", forward)


@pytest.mark.parametrize(
    ("name", "convolutions"),
    [
        ("DAPF(224)", 8),
        ("ASPP(224)", 6),
        ("HarDBlock base.4", 4),
        # All but those of the MDAs and the classifier.
        ("fassd_net", 59),
        ("baseline_aspp_mda", 57),
    ],
)
def test_what_has_cudnn_relus_is_the_same(name, convolutions, cudnn_on_the_cpu):
    if name in MODULES:
        module, shape = MODULES[name].build(), (1, MODULES[name].maps[0][0], 12, 12)
    else:
        module, shape = fassd.create_model(name), (1, 3, 64, 64)
    fused = with_cudnn_relus(fold_batch_norms(randomised(module)))
    x = torch.randn(shape)
    with torch.no_grad():
        assert relative_error(fused(x), module(x)) < 1e-5
    assert sum(isinstance(part, CudnnConvReLU) for part in fused.modules()) == convolutions


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

    launches = launches_of(lambda: dapf(x, **packed))
    names = {launch.kernel.__name__ for launch in launches}
    assert names <= {"conv_act_kernel", "asymmetric_conv_kernel"}
    # At the least: the input is read, the output is written.
    assert sum(launch.work.bytes for launch in launches) > 2 * x.nbytes
    weights = sum(weight.numel() for weight in packed["weights"])
    # Taps in the padding are not counted: every dilation here reaches over part of the map.
    assert 0 < sum(launch.work.operations for launch in launches) <= 2 * 16 * 16 * weights


def test_what_is_not_ours_is_found_out():
    planned = ["conv_act_kernel", "upsample_kernel"]
    seen = ["conv_act_kernel", "CatArrayBatchedCopy", "upsample_kernel", "CatArrayBatchedCopy"]
    assert foreign(seen, planned) == {"CatArrayBatchedCopy": 2}
    assert foreign(seen[::2], planned) == {}


# --- a runner with a graph of its own -------------------------------------------------------------


def test_a_runner_without_its_graph_has_failed(monkeypatch):
    def without_graph(context: BuildContext, dtype: torch.dtype) -> fassd_kernels.GraphRunner:
        return fassd_kernels.GraphRunner(context.module)

    form = Candidate("triton-graph", "without a graph", without_graph, own_graph=True)
    monkeypatch.setitem(FORMS, "triton-graph", form)
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
    low, skip = subject.inputs(0)
    assert low.shape == (3, 78, 8, 16) and skip.shape == (3, 48, 16, 32)
    assert torch.equal(low, subject.inputs(0)[0])
    assert not torch.equal(low, subject.inputs(1)[0])


def test_normalize_computes_wide_and_gives_what_it_was_moved_to():
    image = torch.randint(256, (1, 4, 6, 3), dtype=torch.uint8)
    exact = Normalize().to(torch.float64)(image)
    half = Normalize().to(CPU, torch.float16).to(memory_format=torch.channels_last)
    assert exact.dtype == torch.float64
    assert torch.equal(half(image), Normalize()(image).half())
    assert relative_error(half(image), exact) < 1e-3
