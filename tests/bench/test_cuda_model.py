"""The time model of the CUDA backend: launches, bytes, operations, and what follows from them.

Which tile a plan takes is the C++ side's business, and changes as it is tuned; what is asserted
here holds for any.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fassd.bench.costs import cuda as predict
from fassd.bench.costs.cuda import Convolution, Limits, Model, Pair, goals_of, plans_together
from fassd_kernels.triton import availability
from fassd_kernels.triton.device import KNOWN

pytestmark = pytest.mark.skipif(
    bool(availability.triton_missing()), reason=availability.triton_missing()
)
CSRC = Path(__file__).parents[2] / "csrc" / "cuda"
H200 = next(device for device in KNOWN if device.name == "NVIDIA H200")
LIMITS = Limits(H200.multiprocessors, H200.shared, 90)
STEM = Convolution(1, (64, 64), (3,), 16, (3, 3), predict.HALF, (32, 32), (2, 2))


@pytest.fixture(scope="module")
def fassd_net():
    return predict.predict_network("fassd_net", 1024, 2048, H200)


@pytest.fixture(scope="module")
def light():
    return predict.predict_network("fassd_net_l2", 256, 512, H200)


def labelled(prediction, label, channels=None):
    found = [
        launch
        for launch in prediction.launches
        if launch.label == label and channels in (None, launch.channels)
    ]
    assert found, (label, channels)
    return found


# --- launches -------------------------------------------------------------------------------------


def test_launches_of_fassd_net(fassd_net):
    labels = [launch.label for launch in fassd_net.launches]
    pairs = [
        label for label in labels if label.startswith(("dapf", "mda asym", "mda 3x", "mda 1x"))
    ]
    # Stem 4, encoder blocks with a 1x1 behind each, decoder blocks, the 1x1 of the classes, and
    # three decoder steps of two convolutions around the upsampling and three of mda's own.
    blocks = [label for label in labels if label.startswith("hardblock")]
    # A couple's label names two layers: hardblock 1+2.
    assert sum(1 + label.count("+") for label in blocks) == 4 + 4 + 8 + 8 + 8 + 4 + 4
    assert labels.count("conv") == 4 + 4 + 1
    assert sum(label.startswith("upsample_conv1x1") for label in labels) == 6
    assert sum(label in ("mda reduce", "mda square", "mda tail") for label in labels) == 9
    assert labels[-1] == "upsample_argmax"
    assert pairs.count("dapf project") == 1
    assert len(labels) == len(blocks) + 9 + 6 + 9 + 1 + len(pairs)
    # Branches together or apart: one launch, or one a convolution.
    assert sum(label.startswith("dapf") for label in pairs) - 1 in (1, 7)
    assert 3 <= sum(label.startswith("mda") for label in pairs) <= 6


def test_bytes_and_operations_of_a_convolution(fassd_net):
    first = fassd_net.launches[0]
    assert (first.channels, first.height, first.width) == ("3>16", 512, 1024)
    assert first.bytes == 2 * (3 * 1024 * 2048 + 16 * 512 * 1024 + 9 * 3 * 16)
    assert first.operations == 2 * 512 * 1024 * 9 * 3 * 16
    assert first.floor == first.bytes / 4.8e12  # the memory, not 989 TFLOP/s
    assert first.taps == "9" and first.kernel == "stem_kernel"


def test_three_channels_are_one_axis_with_the_taps(fassd_net):
    """Tiles of 256 pixels by 16 channels, 27 products padded to 32; a map of 512x1024."""
    first, second = fassd_net.launches[:2]
    assert first.blocks == 512 * 1024 // 256
    assert first.issued == 2 * 512 * 1024 * 16 * 32
    assert second.kernel == "convolution_kernel"
    # 16 x 16 pixels of the result need the fewest of the picture: 33 x 33, three values of 2 bytes.
    assert first.loaded == first.blocks * (2 * 3 * 33 * 33 + 2 * 32 * 16)
    wide = replace(STEM, out_channels=40)
    assert predict.stem_plan(wide, LIMITS).tile.startswith("256 px x 32 ch")
    for other in (
        replace(STEM, channels=(4,)),
        replace(STEM, stride=(4, 1)),
        replace(STEM, dilation=(1, 9)),
        replace(STEM, arithmetic=predict.FLOAT32),
        replace(STEM, kernel=(1, 1)),
    ):
        assert predict.is_stem(STEM) and not predict.is_stem(other)


def test_bytes_of_mda_are_those_of_the_cuda_kernels(fassd_net):
    """The sum of the branches is made by the asymmetric pair, not on the way into the last 1x1."""
    pixels = 256 * 512
    (tail,) = labelled(fassd_net, "mda tail", "31>63")
    assert tail.bytes == 2 * (pixels * (31 + 63 + 63) + 31 * 63)
    pair = Pair(1, (256, 512), 31, 31, 31, 2, False, predict.HALF)
    launches = list(Model(H200, torch.float16).pairs("mda", [pair], addends=1))
    images, weights = [launch.bytes for launch in launches], 3 * 31 * 31
    if len(launches) == 1:
        assert images == [2 * (pixels * 31 * 3 + 2 * weights)]
    else:
        assert images == [2 * (pixels * 31 * n + weights) for n in (2, 3)]
    assert sum(x.operations for x in launches) == 2 * 31 * 31 * (
        (256 + 2 * 254) * 512 + (512 + 2 * 510) * 256
    )


def test_taps_that_read_only_padding_are_not_counted(fassd_net):
    """On a map of 32 rows, the 3x1 at dilation 36 is a 1x1."""
    pair = Pair(1, (32, 64), 224, 112, 112, 36, False, predict.HALF)
    assert [c.plan(LIMITS).taps for c in pair.convolutions] == [1, 3]
    assert pair.operations == (2 * 32 * 64 * 224 * 112, 2 * 32 * (64 + 2 * 28) * 112 * 112)


@pytest.mark.parametrize("arithmetic", [predict.HALF, predict.TF32, predict.FLOAT32])
def test_a_plan_covers_the_result(arithmetic):
    conv = Convolution(2, (100, 130), (10, 48), 18, (3, 3), arithmetic, (50, 65), (2, 2))
    plan = conv.plan(LIMITS)
    channels = 8 * plan.n_tiles
    tiles = math.ceil(50 / plan.tile_height) * math.ceil(65 / plan.tile_width)
    assert plan.blocks == 2 * tiles * math.ceil(18 / channels)
    pixels = plan.tile_height * plan.tile_width
    # Channels of each input are padded to whole products.
    depth = {predict.HALF: 16 + 48, predict.TF32: 16 + 48, predict.FLOAT32: 12 + 48}[arithmetic]
    assert plan.products == pixels * channels * 9 * depth
    assert 0 < plan.shared_bytes <= LIMITS.shared_bytes
    assert pixels == 16 * plan.warps * plan.m_tiles
    assert plan.tile.startswith(f"{pixels} px x {channels} ch, chunk {plan.chunk}, ")


def test_numbers_of_a_launch_are_those_of_its_plan(fassd_net):
    """The second convolution of the stem: 16 to 24 channels at 512x1024, 3x3."""
    launch = fassd_net.launches[1]
    plan = Convolution(1, (512, 1024), (16,), 24, (3, 3), predict.HALF, (512, 1024)).plan(LIMITS)
    assert (launch.blocks, launch.resident) == (plan.blocks, plan.resident)
    assert launch.waves == plan.blocks / (132 * plan.resident)
    assert launch.issued == 2 * plan.blocks * plan.products
    assert launch.loaded == plan.blocks * plan.loaded
    body = max(plan.cycles / 1.83e9, launch.bytes / (4.8e12 * 0.85), launch.issued / 989e12)
    assert launch.predicted == pytest.approx(body + 1.5e-6)


# --- pairs: run_pairs in asymmetric_conv.cu -------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("plan.h", "launch_gap_cycles", predict.LAUNCH_GAP_CYCLES),
        ("asymmetric_conv.cuh", "most_pairs", predict.MOST_PAIRS),
        ("plan.cpp", "launch_cycles", predict.BLOCK_CYCLES),
        ("stem.cuh", "stem_depth", predict.STEM_DEPTH),
        ("stem.cu", "largest", predict.STEM_REACH["dilation"]),
    ],
)
def test_constants_are_those_of_the_sources(file, name, value):
    (found,) = re.findall(rf"\b{name} = (\d+)", (CSRC / file).read_text())
    assert int(found) == value


def stub(cycles, apart, blocks=132, warps=8, n_tiles=4):
    """A pair whose plan takes `cycles`, and whose convolutions take `apart`."""
    plan = SimpleNamespace(warps=warps, n_tiles=n_tiles, cycles=cycles, blocks=blocks)
    convolutions = [SimpleNamespace(plan=lambda _, c=c: SimpleNamespace(cycles=c)) for c in apart]
    return SimpleNamespace(
        plan=lambda _: None if cycles is None else plan, convolutions=convolutions
    )


@pytest.mark.parametrize(
    ("pairs", "together"),
    [
        ([stub(12_500, (5_000, 5_000))], True),  # as much as two, and the gap between them
        ([stub(12_501, (5_000, 5_000))], False),
        # Three convolutions have two gaps between them.
        ([stub(5_000, (1_000,)), stub(3_000, (1_000, 1_000))], True),
        ([stub(5_000, (1_000,)), stub(3_001, (1_000, 1_000))], False),
        # Those of half a wave share the multiprocessors: as long as one, not as two.
        ([stub(8_000, (1_000,), 66), stub(8_000, (1_000, 1_000), 66)], True),
        ([stub(8_001, (1_000,), 66), stub(8_001, (1_000, 1_000), 66)], False),
        # One and a half waves are planned as two.
        ([stub(8_000, (1_000,), 198), stub(2_000, (1_000, 1_000))], True),
        ([stub(8_000, (1_000,), 198), stub(2_001, (1_000, 1_000))], False),
        ([stub(1, (9_000, 9_000)), stub(None, (9_000, 9_000))], False),
        ([stub(1, (9_000, 9_000)), stub(1, (9_000, 9_000), warps=4)], False),
        ([stub(1, (9_000, 9_000)), stub(1, (9_000, 9_000), n_tiles=8)], False),
        ([stub(1, (9_000, 9_000))] * 4, True),
        ([stub(1, (9_000, 9_000))] * 5, False),
    ],
)
def test_when_pairs_are_one_launch(pairs, together):
    plans = plans_together(pairs, LIMITS)
    assert (plans is not None) == together
    assert plans is None or len(plans) == len(pairs)


@pytest.mark.parametrize(("asked", "launches"), [("always", True), ("never", False)])
def test_fusion_that_is_asked_for(monkeypatch, asked, launches):
    monkeypatch.setenv("FASSD_KERNELS_CUDA_FUSION", asked)
    assert (plans_together([stub(99_999, (1, 1))], LIMITS) is not None) == launches
    assert (plans_together([stub(1, (99_999, 99_999))], LIMITS) is not None) == launches
    assert plans_together([stub(None, (9, 9))], LIMITS) is None


def test_a_wide_pair_is_two_launches():
    pair = Pair(1, (16, 32), 40, 136, 136, 2, False, predict.HALF)
    assert pair.plan(LIMITS) is None
    launches = list(Model(H200, torch.float16).pairs("asymmetric", [pair]))
    assert [(x.label, x.channels, x.taps, x.kernel) for x in launches] == [
        ("asymmetric 3x1", "40>136", "3", "convolution_kernel"),
        ("asymmetric 1x3", "136>136", "3", "convolution_kernel"),
    ]
    assert [x.bytes for x in launches] == [
        2 * (512 * (40 + 136) + 3 * 40 * 136),
        2 * (512 * (136 + 136) + 3 * 136 * 136),
    ]


def test_branches_of_one_launch(monkeypatch):
    single = Pair(2, (32, 64), 224, 112, 112, 1, True, predict.HALF)
    pairs = [single, *(Pair(2, (32, 64), 224, 112, 112, d, False, predict.HALF) for d in (12, 24))]
    plans = [pair.plan(LIMITS) for pair in pairs]
    monkeypatch.setattr(predict, "plans_together", lambda *_: plans)
    (launch,) = Model(H200, torch.float16).pairs("dapf", pairs)
    assert launch.label == "dapf branches" and launch.kernel == "pair_kernel"
    assert launch.channels == "224>112, 2x 224>112>112"
    assert launch.taps == "+".join(str(plan.taps) for plan in plans)
    assert launch.blocks == sum(plan.blocks for plan in plans)
    assert launch.resident == min(plan.resident for plan in plans)
    assert launch.shared_bytes == max(plan.shared_bytes for plan in plans)
    weights = 224 * 112 + 2 * 3 * 112 * (224 + 112)
    assert launch.bytes == 2 * (2 * 32 * 64 * (224 + 3 * 112) + weights)


# --- couples: hardblock.cu ------------------------------------------------------------------------


@pytest.mark.parametrize(("cycles", "together"), [(12_500, True), (12_501, False), (None, False)])
def test_when_layers_are_one_launch(cycles, together):
    """As much as two, and the gap between them."""
    plan = None if cycles is None else SimpleNamespace(cycles=cycles)
    layers = [SimpleNamespace(plan=lambda _: SimpleNamespace(cycles=5_000))] * 2
    couple = SimpleNamespace(plan=lambda _: plan, layers=layers)
    assert predict.couple_together(couple, LIMITS) is (plan if together else None)


def test_a_couple_and_its_layers(monkeypatch):
    """48 to 10 channels, then these and the 48 to 18: the 48 are read once, the 10 only written."""
    kept = []

    def planned(couple, limits):
        kept.append(couple)
        return couple.plan(limits) if len(kept) == 1 else None

    monkeypatch.setattr(predict, "couple_together", planned)
    prediction = predict.predict_network("fassd_net", 256, 512, H200)
    couple, pixels = kept[0], 64 * 128
    assert (couple.channels, couple.odd_channels, couple.even_channels) == ((48,), 10, 18)
    assert [x.channels for x in couple.layers] == [(48,), (10, 48)]
    assert [x.label for x in prediction.launches[4:7]] == [
        "hardblock 1+2", "hardblock 3", "hardblock 4"
    ]  # fmt: skip
    launch, third = prediction.launches[4:6]
    assert (launch.kernel, launch.channels) == ("couple_kernel", "48>10, 10+48>18")
    assert launch.bytes == 2 * (pixels * (48 + 10 + 18) + 9 * (48 * 10 + 58 * 18))
    assert launch.operations == 2 * pixels * 9 * (48 * 10 + 58 * 18)
    assert launch.blocks == couple.plan(LIMITS).blocks
    # Alone, an odd layer is written to the result and for the layer behind it.
    assert third.bytes == 2 * (pixels * (18 + 2 * 10) + 9 * 18 * 10)


# --- sums -----------------------------------------------------------------------------------------


def test_totals_and_groups(fassd_net):
    launches, groups = fassd_net.launches, fassd_net.groups()
    assert fassd_net.predicted == sum(launch.predicted for launch in launches)
    assert fassd_net.floor == sum(launch.floor for launch in launches)
    assert fassd_net.frames_per_second == 1 / fassd_net.predicted
    assert fassd_net.total("measured") is None
    assert sum(group.count for group in groups) == len(launches)
    for name in ("bytes", "operations", "issued", "loaded", "floor", "predicted"):
        assert sum(g.total(name) for g in groups) == pytest.approx(fassd_net.total(name))


def test_equal_launches_are_one_group(fassd_net):
    one = fassd_net.launches[1]
    launches = tuple(replace(one, label=f"hardblock {layer}") for layer in (3, 7, 3))
    other = replace(one, label="conv")
    twice, alone = replace(fassd_net, launches=(*launches, other)).groups()
    assert (twice.label, twice.count, alone.label) == ("hardblock 3, 7", 3, "conv")
    assert twice.total("bytes") == twice.to_json()["bytes"] * 3 == 3 * one.bytes


def test_json(light):
    record = light.to_json()
    assert (record["network"], record["size"], record["batch"]) == ("fassd_net_l2", [256, 512], 1)
    assert record["launches"] == len(light.launches) == sum(row["count"] for row in record["rows"])
    assert record["predicted_s"] == light.predicted and record["measured_s"] is None
    first = record["rows"][0]
    assert first["bytes"] == light.launches[0].bytes and first["channels"] == "3>16"
    assert first["predicted_s"] == light.launches[0].predicted
    assert "predicted" not in first


@pytest.mark.parametrize(
    ("gpu", "dtype"),
    [
        ("Tesla T4", torch.float16),
        ("Tesla T4", torch.float32),
        ("RTX 3090", torch.float16),
        ("L4", torch.bfloat16),
        ("B200", torch.float32),
    ],
)
def test_no_prediction_is_below_its_floor(gpu, dtype):
    device = predict.find_device(gpu)
    prediction = predict.predict_network("fassd_net_l2", 128, 256, device, dtype=dtype, batch=2)
    for launch in prediction.launches:
        assert 0 < launch.floor <= launch.predicted, launch
        assert launch.operations <= launch.issued, launch
        assert launch.bound in ("memory", "cache", "shared memory", "arithmetic", "waiting")


def test_a_batch_pays(light):
    batch = predict.predict_network("fassd_net_l2", 256, 512, H200, batch=8)
    assert batch.total("operations") == 8 * light.total("operations")
    assert light.predicted < batch.predicted < 8 * light.predicted


def test_tf32_is_half_the_rate_of_halves():
    assert Model(H200, torch.float32, tf32=True).rate == 989e12 / 2
    assert Model(H200, torch.float32).rate == 67e12
    t4 = predict.find_device("t4")
    assert Model(t4, torch.float32, tf32=True).arithmetic == predict.FLOAT32  # it has none
    assert Model(t4, torch.float16).rate == 65e12


def test_a_network_of_other_parts():
    prediction = predict.predict_network("baseline_aspp", 256, 512, H200)
    labels = [launch.label for launch in prediction.launches]
    assert sum(label.startswith("aspp") for label in labels) == 8
    (mean,) = labelled(prediction, "aspp mean")
    assert (mean.kernel, mean.bytes, mean.blocks) == ("mean_kernel", 2 * 8 * 16 * 224, 0)
    assert not any(label.startswith(("dapf", "mda")) for label in labels)


# --- goals ----------------------------------------------------------------------------------------


def test_goals_are_for_the_h200_at_their_size(fassd_net, light):
    (goal,) = goals_of(fassd_net)
    assert (goal.limit, goal.unit, goal.figure) == (0.5, "ms", 1e3 * fassd_net.predicted)
    assert goal.is_met == (fassd_net.predicted <= 0.5e-3)
    assert goal.described == f"{1e3 * fassd_net.predicted:.3f} ms"
    assert goals_of(light) == []
    assert goals_of(replace(fassd_net, device=KNOWN[0])) == []
    assert goals_of(replace(fassd_net, dtype="float32")) == []
    assert goals_of(replace(fassd_net, network="baseline")) == []


def test_goal_of_a_batch(fassd_net):
    """Eight frames in the time of one are eight times the frames per second."""
    batch = replace(fassd_net, batch=8)
    (goal,) = goals_of(batch, fassd_net)
    assert goal.figure == pytest.approx(8) and goal.limit == 1.3 and goal.is_met
    assert goal.described == "8.00x"
    assert goals_of(batch) == []


# --- errors ---------------------------------------------------------------------------------------


def test_unknown_gpus():
    with pytest.raises(ValueError, match=r"gpu is 'titan'; expected one of Tesla T4, .*H200"):
        predict.find_device("titan")
    with pytest.raises(ValueError, match="gpu is 'rtx'"):
        predict.find_device("rtx")
    assert predict.find_device("h200") == H200


def test_gpus_that_the_backend_does_not_serve():
    with pytest.raises(ValueError, match="gpu is AMD MI300X; the cuda backend is for NVIDIA's"):
        Model(predict.find_device("mi300x"), torch.float16)
    with pytest.raises(ValueError, match=r"needs compute capability 8\.0; Tesla T4 has 7\.5"):
        Model(predict.find_device("t4"), torch.bfloat16)


def test_what_is_missing_is_said(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(availability, "triton_missing", lambda: "Triton is not installed")
        with pytest.raises(ImportError, match=r"pip install 'fassd-net\[triton\]'.*not installed"):
            predict.find_device("h200")
    monkeypatch.setattr(predict.torch.ops, "fassd_kernels", SimpleNamespace())
    with pytest.raises(ImportError, match=r"C\+\+ extension.*pip install"):
        predict.predict_network("fassd_net", 64, 64, H200)
