"""Planning: what is launched, what it depends on, and what is kept.

Plans are the same whether kernels are interpreted or compiled.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from conformance import cases
from triton_backend.conftest import allowing_tf32, compiled, plan_of

import fassd
from fassd.bench.costs.triton import plan_network
from fassd_kernels import ops
from fassd_kernels.triton import program as programs
from fassd_kernels.triton.device import KNOWN, assuming
from fassd_kernels.triton.layout import empty_image, pixel_stride
from fassd_kernels.triton.program import image_of, key_of, recording

pytestmark = compiled

H200 = next(device for device in KNOWN if device.name == "NVIDIA H200")


def test_a_network_is_its_launches_and_nothing_else():
    """No copy, concatenation, padding or permutation: at most 75, of our kernels only."""
    launches = plan_network("fassd_net", 1024, 2048, H200)
    assert len(launches) == 71
    names = {planned.launch.kernel.__name__ for planned in launches}
    assert names == {"conv_act_kernel", "asymmetric_conv_kernel", "labels_kernel"}
    assert not any(planned.program.prepare for planned in launches)  # weights came packed


@pytest.mark.parametrize("name", fassd.list_models())
def test_images_inside_a_network_are_loaded_in_vectors(name):
    """But for the picture itself, whose three channels lie apart."""
    launches = plan_network(name, 256, 512, H200)
    narrow = [p for p in launches if p.launch.problem and p.launch.problem.narrow]
    assert narrow == launches[:1]


def test_the_time_model_adds_up():
    """To the network's own figures: 44.7 GMAC, 0.71 GB in and out of the convolutions."""
    launches = plan_network("fassd_net", 1024, 2048, H200)
    operations = sum(planned.launch.work.operations for planned in launches)
    moved = sum(planned.launch.work.bytes for planned in launches)
    assert 0.95 < operations / (2 * 44.7e9) < 1.01  # taps that read padding are not counted
    assert 0.95 < moved / 0.71e9 < 1.05
    for planned in launches:
        assert 0 < planned.floor(H200) < planned.predicted(H200)
        assert planned.launch.work.issued == 0 or (
            planned.launch.work.issued >= planned.launch.work.operations
        )


def test_dapf_takes_three_launches():
    call = cases.dapf(1, 24, 12, 20, (8, 16), (12, 24, 36)).to(torch.float32)
    program = plan_of(lambda: call(ops.operator("dapf", "triton")))
    assert [launch.label for launch in program.launches] == [
        "dapf 1x1", "dapf branches", "dapf project",
    ]  # fmt: skip


def test_taps_that_see_only_padding_are_left_out():
    call = cases.conv_act(1, (8,), 8, (5, 40), (3, 3), (1, 1), (5, 12)).to(torch.float32)
    (launch,) = plan_of(lambda: call(ops.operator("conv_act", "triton"))).launches
    assert launch.arguments["TAPS"] == 0b000111000
    call = cases.conv_act(1, (8,), 8, (5, 40), (3, 3), (1, 1), (4, 41)).to(torch.float32)
    (launch,) = plan_of(lambda: call(ops.operator("conv_act", "triton"))).launches
    assert launch.arguments["TAPS"] == 0b010010010
    assert launch.work.operations == 2 * 5 * 40 * 3 * 8 * 8


def test_vectors_are_told_by_strides_and_address():
    padded = empty_image((2, 13, 4, 5), torch.float16, "cpu", True)
    assert padded.stride() == (4 * 5 * 16, 1, 5 * 16, 16)
    for tensor, vector in (
        (padded, 8),
        (padded[:, 8:], 8),
        (padded[:, 4:], 1),  # its address is a multiple of 8 bytes only
        (padded[:, :, 1:, 2:], 8),
        (empty_image((2, 13, 4, 5), torch.float16, "cpu", False), 1),
        (torch.empty(2, 13, 4, 5, dtype=torch.float16), 1),
        (torch.empty(1, 8, 1, 1, dtype=torch.float32), 4),
        (torch.empty(1, 1, 4, 5).expand(1, 9, 4, 5), 1),
    ):
        assert image_of(0, tensor).vector == vector, tensor.stride()
    assert [pixel_stride(c, True) for c in (1, 8, 9, 119)] == [8, 8, 16, 120]


def test_key_tells_apart_whatever_a_plan_depends_on():
    x = torch.empty(2, 16, 4, 5, dtype=torch.float16)
    others = [
        x.float(), x[:1], x.to(memory_format=torch.channels_last), x.transpose(2, 3), x[:, 1:],
        torch.empty(2, 16, 4, 5, dtype=torch.float16, device="meta"),
    ]  # fmt: skip
    keys = [key_of(x), *map(key_of, others), key_of(None)]
    assert len(set(keys)) == len(keys)
    assert key_of(torch.empty_like(x)) == key_of(x)


def test_an_address_counts_also_where_there_is_no_room_for_vectors():
    """What was compiled for an aligned address must not serve one that is not."""
    buffer = torch.empty(64, dtype=torch.float16)
    aligned, not_aligned = (buffer[i : i + 9].view(1, 9, 1, 1) for i in (48, 49))
    tight = torch.empty(57, dtype=torch.float16)[48:].view(1, 9, 1, 1)
    assert image_of(0, tight).vector == image_of(0, not_aligned).vector == 1
    assert len({key_of(aligned), key_of(not_aligned), key_of(tight)}) == 3


def test_whole_vectors_need_room_behind_the_last_pixel():
    buffer = torch.zeros(1, 1, 1, 16, dtype=torch.float16).permute(0, 3, 1, 2)
    assert image_of(0, buffer[:, :9]).vector == 8
    alone = torch.zeros(1, 9, 1, 1, dtype=torch.float16)
    assert image_of(0, alone).vector == 1
    assert key_of(alone) != key_of(torch.empty(16, dtype=torch.float16)[:9].view(1, 9, 1, 1))


def problem_of(**shape):
    call = cases.conv_act(**shape).to(torch.float16)
    (launch,) = plan_of(lambda: call(ops.operator("conv_act", "triton"))).launches
    return launch.problem.key


def test_whatever_makes_another_kernel_is_another_problem():
    """Or a configuration would serve where it was never verified."""
    first = dict(channels=(16,), out_channels=16, size=(6, 12))
    keys = [
        problem_of(**first, **more)
        for more in (
            {}, {"residual": True}, {"activation": "relu"}, {"activation": "prelu"}, {"pool": 2},
            {"kernel": (3, 1)}, {"kernel": (1, 3)}, {"stride": (1, 2)}, {"dilation": (2, 2)},
            {"dilation": (3, 3)}, {"batch": 2},
        )
    ]  # fmt: skip
    assert len(set(keys)) == len(keys), keys


def test_tf32_by_either_of_pytorchs_settings():
    """Each in a process of its own, since PyTorch does not let them be mixed."""
    code = """
import os, torch
from fassd_kernels.triton.program import tf32_requested
matmul = torch.backends.cuda.matmul
for old, new in (("highest", ""), ("high", ""), ("", "tf32"), ("", "ieee")):
    if os.fork() == 0:
        if old: torch.set_float32_matmul_precision(old)
        if new: matmul.fp32_precision = new
        print(old + new, tf32_requested(), flush=True)
        os._exit(0)
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["highest False", "high True", "tf32 True", "ieee False"]


def test_tf32_only_where_it_is_in_hardware():
    call = cases.conv_act().to(torch.float32)
    exact = set()
    for device in KNOWN:
        with allowing_tf32(), assuming(device):
            program = plan_of(lambda: call(ops.operator("conv_act", "triton")))
        exact |= {device.name} if program.launches[0].arguments["PRECISION"] == "ieee" else set()
    assert exact == {"Tesla T4"}


@pytest.mark.parametrize("shape", [(0, 3, 1, 3), (2, 3, 0, 5), (1, 9, 4, 1), (0, 9, 0, 0)])
def test_results_are_laid_out_as_the_fake_kernels_say(shape):
    batch, channels, height, width = shape
    call = cases.conv_act(batch, (4,), channels, (height, width)).to(torch.float32)
    with recording():
        result = call(ops.operator("conv_act", "triton"))
    fake = call.map(lambda x: x.to("meta"))(ops.operator("conv_act", "triton"))
    assert (result.shape, result.stride()) == (fake.shape, fake.stride())


def test_programs_are_bounded_and_hold_no_tensors(monkeypatch):
    monkeypatch.setattr(programs, "MOST_PROGRAMS", 3)
    programs.forget_programs()
    call = cases.conv_act(1, (8,), 8, (4, 5)).to(torch.float16)
    seen = weakref.ref(call.arguments["inputs"][0])
    with recording():
        for width in range(5, 12):
            wider = cases.conv_act(1, (8,), 8, (4, width)).to(torch.float16)
            wider(ops.operator("conv_act", "triton"))
        call(ops.operator("conv_act", "triton"))
    assert len(programs._programs) == 3
    del call
    gc.collect()
    assert seen() is None
    programs.forget_programs()


def test_importing_the_package_imports_no_kernels():
    code = "import sys, fassd_kernels; print('fassd_kernels.triton.conv_act' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
