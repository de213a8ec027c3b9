"""What the GPU report measures, on a CPU: every form of a subject that runs here agrees."""

from __future__ import annotations

import pytest
import torch

import fassd
import fassd_kernels
from benchmarks.probes import foreign
from fassd.bench.candidates import UnavailableError
from fassd.bench.cases import Bench, measure_case
from fassd.bench.folding import randomised
from fassd.bench.plain import Normalize
from fassd.bench.subjects import MODULES, OPERATORS, PARTS, PICTURES, Case, subject_of
from fassd.models.clock import Sampling
from fassd_kernels.operators import OPERATORS as TABLE
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


def test_every_operator_has_a_subject():
    places = {name: PARTS[name].operator for name in [*OPERATORS, *PICTURES, *MODULES]}
    assert set(places.values()) == set(TABLE) - {"pack_weight"}


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
