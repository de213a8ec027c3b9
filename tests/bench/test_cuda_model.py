"""The time model of the CUDA backend: launches, bytes, operations, and what follows from them.

Which tile a plan takes is the C++ side's business, and changes as it is tuned; what is asserted
here holds for any.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fassd.bench.costs import cuda as predict
from fassd.bench.costs.cuda import Model, tile_of
from fassd_kernels.operators import OPERATORS
from fassd_kernels.triton import availability
from fassd_kernels.triton.device import KNOWN
from fassd_kernels.tuning.calls import OperatorCall

pytestmark = pytest.mark.skipif(
    bool(availability.triton_missing()), reason=availability.triton_missing()
)
H200 = next(device for device in KNOWN if device.name == "NVIDIA H200")
GAP = 2500  # clocks between two launches: launch_gap_cycles in csrc/plan/plan.h
FUSION = "FASSD_KERNELS_CUDA_FUSION"


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


def tensor(*shape, dtype=torch.float16):
    """Of a shape and a type, and no values: an answer depends on nothing else."""
    return torch.empty(shape, dtype=dtype, device="meta")


def answer(name, *arguments, device=H200, dtype=torch.float16, tf32=False, **keywords):
    return Model(device, dtype, tf32).answer(OperatorCall.of(name, *arguments, **keywords))


def conv(channels, out, size, kernel=(3, 3), dtype=torch.float16, batch=1, **keywords):
    inputs = [tensor(batch, c, *size, dtype=dtype) for c in channels]
    weight = tensor(out, sum(channels), *kernel, dtype=dtype)
    (found,) = answer("conv_act", inputs, weight, dtype=dtype, **keywords)
    return found


def pair(size, channels, middle, out, dilation, batch=1):
    """The launches of a 3x1 and a 1x3."""
    weights = tensor(middle, channels, 3, 1), tensor(out, middle, 1, 3)
    return answer(
        "asymmetric_conv", tensor(batch, channels, *size), *weights, dilation=dilation
    )  # fmt: skip


def branches(size, channels, width, dilations, batch=1):
    """The launches of DAPF's branches, without the convolution that projects them."""
    weights = [tensor(width, channels, 1, 1)]
    for _ in dilations:
        weights += [tensor(width, channels, 3, 1), tensor(width, width, 1, 3)]
    weights.append(tensor(channels, width * (1 + len(dilations)), 1, 1))
    biases = [tensor(weight.shape[0]) for weight in weights]
    image = tensor(batch, channels, *size)
    *found, project = answer("dapf", image, weights, biases, dilations=dilations)
    assert project["label"] == "dapf project"
    return found


def block(size, channels, widths):
    """The launches of a HarDBlock."""
    sources = {1: (0,), 2: (1, 0), 3: (2,), 4: (3, 2, 0)}
    known = (channels, *widths)
    weights = [
        tensor(width, sum(known[i] for i in sources[layer]), 3, 3)
        for layer, width in enumerate(widths, start=1)
    ]
    biases = [tensor(width) for width in widths]
    return answer("hardblock", tensor(1, channels, *size), weights, biases)


# --- launches -------------------------------------------------------------------------------------


def test_every_operator_answers():
    assert all(hasattr(torch.ops.fassd_kernels_plan, name) for name in OPERATORS)


@pytest.mark.parametrize(
    "gpu", [[132, 232448], [132, 232448, 90, 1], [0, 232448, 90], [1, 2**31, 90]]
)
def test_limits_that_no_gpu_has(gpu):
    with pytest.raises(RuntimeError, match=r"gpu h.*expected"):
        torch.ops.fassd_kernels_plan.upsample(tensor(1, 3, 4, 4), [8, 8], gpu=gpu)


def test_an_answer_checks_the_call():
    with pytest.raises(RuntimeError, match="conv_act: weight takes 5 input channels, but 4 come"):
        answer("conv_act", [tensor(1, 4, 8, 8)], tensor(8, 5, 3, 3))
    assert answer("upsample", tensor(0, 4, 8, 8), [16, 16]) == []


def test_groups_and_windows():
    """A depthwise convolution has a kernel of its own, of blocks of 64 channels."""
    image = tensor(2, 96, 64, 127)
    (launch,) = answer("grouped_conv_act", image, tensor(96, 1, 3, 3), groups=96)
    values = 2 * 96 * 64 * 127
    assert (launch["kernel"], launch["channels"]) == ("depthwise_kernel", "96")
    assert launch["operations"] == 2 * 9 * values
    assert launch["bytes"] == 2 * (2 * values + 9 * 96)
    results = 2 * 128 * 64 * 128 / 256
    assert launch["work"] == {"depthwise_vectors": 9 * results, "depthwise_results": results}
    for weight, groups in ((tensor(96, 12, 3, 3), 8), (tensor(96, 1, 1, 1), 96)):
        (launch,) = answer("grouped_conv_act", image, weight, groups=groups)
        assert launch["kernel"] == "grouped_kernel"
    window = {"kernel": [3, 2], "stride": [2, 2], "padding": [1, 1]}
    (launch,) = answer("max_pool", image, **window)
    assert (launch["kernel"], launch["height"], launch["width"]) == ("max_pool_kernel", 32, 64)
    assert launch["operations"] == 6 * 2 * 96 * 32 * 64


def test_launches_of_fassd_net(fassd_net):
    labels = [launch.label for launch in fassd_net.launches]
    pairs = [
        label for label in labels if label.startswith(("dapf", "mda asym", "mda 3x", "mda 1x"))
    ]
    # Stem 4, encoder blocks with a 1x1 behind each, decoder blocks, the 1x1 of the classes, and
    # three decoder steps of two convolutions around the upsampling and three of mda's own.
    blocks = [label for label in labels if label.startswith("hardblock")]
    assert len(blocks) == 4 + 4 + 8 + 8 + 8 + 4 + 4
    assert labels.count("conv") == 4 + 4 + 1
    assert sum(label.startswith("upsample_conv1x1") for label in labels) == 6
    assert sum(label in ("mda reduce", "mda square", "mda tail") for label in labels) == 9
    assert labels[-1] == "upsample_argmax"
    assert fassd_net.launches[-1].kernel == "upsample_argmax_cell_kernel"
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
    """Tiles of 256 pixels by 16 channels, 27 products padded to 48; a map of 512x1024."""
    first, second = fassd_net.launches[:2]
    assert first.blocks == 512 * 1024 // 256
    assert first.issued == 2 * 512 * 1024 * 16 * 48
    assert second.kernel == "convolution_kernel"
    # 8 x 32 pixels of the result need the fewest fours of the picture: 17 rows of 65 pixels, which
    # are 17 fours, of three values of 2 bytes.
    assert first.loaded == first.blocks * (2 * 3 * 17 * 17 * 4 + 2 * 27 * 16)
    stem = conv((3,), 40, (64, 64), stride=(2, 2))
    (blocks,) = stem["blocks"]
    assert stem["kernel"] == "stem_kernel" and blocks["tile_width"] * blocks["tile_height"] == 256
    assert blocks["n_tiles"] == 4
    for other in (
        conv((4,), 16, (64, 64), stride=(2, 2)),
        conv((3,), 16, (64, 64), stride=(4, 1)),
        conv((3,), 16, (64, 64), dilation=(1, 9)),
        conv((3,), 16, (64, 64), dtype=torch.float32),
        conv((3,), 16, (64, 64), kernel=(1, 1)),
    ):
        assert other["kernel"] == "convolution_kernel"


def test_a_picture_of_bytes_is_normalized_on_its_way_in():
    picture = torch.empty(1, 64, 64, 3, dtype=torch.uint8, device="meta")
    mean, std = [0.0] * 3, [1.0] * 3
    stem, wide = (
        answer("normalize_conv_act", picture, tensor(16, 3, *kernel), mean=mean, std=std)
        for kernel in ((3, 3), (1, 1))
    )
    assert [x["kernel"] for x in stem] == ["stem_kernel"]
    assert stem[0]["bytes"] == 64 * 64 * 3 + 2 * (16 * 64 * 64 + 9 * 3 * 16)
    assert [x["kernel"] for x in wide] == ["normalize_kernel", "convolution_kernel"]
    assert wide[0]["bytes"] == 3 * 64 * 64 * (1 + 2)


def test_a_pool_leaves_the_last_odd_row_out():
    """Blocks cover what is computed; operations are those that reach the result."""
    pooled = conv((16,), 24, (21, 33), pool=2)
    assert (pooled["height"], pooled["width"]) == (10, 16)
    assert pooled["operations"] == 2 * 20 * 32 * 9 * 16 * 24
    assert pooled["convolution"]["out_size"] == [21, 33]


def test_an_activation_that_no_epilogue_has_is_a_launch_of_its_own():
    images, weight = [tensor(1, 16, 21, 33)], tensor(24, 16, 3, 3)
    sums, curve = answer("conv_act", images, weight, activation="silu", pool=2)
    assert (sums["kernel"], sums["height"], sums["width"]) == ("convolution_kernel", 21, 33)
    assert (curve["kernel"], curve["height"], curve["width"]) == ("activation_kernel", 10, 16)
    assert curve["bytes"] == 2 * 24 * (21 * 33 + 10 * 16)
    assert len(answer("conv_act", images, weight, activation="relu", pool=2)) == 1


def test_more_inputs_than_a_launch_knows_are_joined():
    channels = (4,) * 10
    weight = tensor(8, 40, 1, 1)
    *joins, last = answer("conv_act", [tensor(1, c, 16, 16) for c in channels], weight)
    assert [x["kernel"] for x in joins] == ["join_kernel"] * 3
    assert last["channels"] == "+".join(["4"] * 7 + ["12"]) + ">8"


def test_bytes_of_mda_are_those_of_the_cuda_kernels(fassd_net):
    """The sum of the branches is made by the asymmetric pair, not on the way into the last 1x1."""
    pixels = 256 * 512
    (tail,) = labelled(fassd_net, "mda tail", "31>63")
    assert tail.bytes == 2 * (pixels * (31 + 63 + 63) + 31 * 63)
    launches = [
        launch
        for launch in fassd_net.launches
        if launch.label in ("mda asymmetric", "mda 3x1", "mda 1x3")
        and launch.channels in ("31>31>31", "31>31")
    ]
    images, weights = [launch.bytes for launch in launches], 3 * 31 * 31
    if len(launches) == 1:
        assert images == [2 * (pixels * 31 * 3 + 2 * weights)]
    else:
        assert images == [2 * (pixels * 31 * n + weights) for n in (2, 3)]
    assert sum(x.operations for x in launches) == 2 * 31 * 31 * (
        (256 + 2 * 254) * 512 + (512 + 2 * 510) * 256
    )


def test_taps_that_read_only_padding_are_not_counted(monkeypatch):
    """On a map of 32 rows, the 3x1 at dilation 36 is a 1x1."""
    monkeypatch.setenv(FUSION, "never")
    launches = pair((32, 64), 224, 112, 112, 36)
    assert [x["blocks"][0]["taps"] for x in launches] == [1, 3]
    assert [x["operations"] for x in launches] == [
        2 * 32 * 64 * 224 * 112,
        2 * 32 * (64 + 2 * 28) * 112 * 112,
    ]


@pytest.mark.parametrize("arithmetic", [predict.HALF, predict.TF32, predict.FLOAT32])
def test_a_plan_covers_the_result(arithmetic):
    dtype = torch.float16 if arithmetic == predict.HALF else torch.float32
    tf32 = arithmetic == predict.TF32
    found = conv((10, 48), 18, (100, 130), dtype=dtype, batch=2, tf32=tf32, stride=(2, 2))
    plan = SimpleNamespace(**found["blocks"][0])
    channels = 8 * plan.n_tiles
    tiles = math.ceil(50 / plan.tile_height) * math.ceil(65 / plan.tile_width)
    assert plan.blocks == 2 * tiles * math.ceil(18 / channels)
    pixels = plan.tile_height * plan.tile_width
    # Channels of each input are padded to whole products.
    depth = {predict.HALF: 16 + 48, predict.TF32: 16 + 48, predict.FLOAT32: 12 + 48}[arithmetic]
    assert plan.products == pixels * channels * 9 * depth
    assert 0 < plan.shared_bytes <= H200.shared
    assert pixels == 16 * plan.warps * plan.m_tiles // plan.splits
    assert tile_of(vars(plan)).startswith(f"{pixels} px x {channels} ch, chunk {plan.chunk}, ")


def test_numbers_of_a_launch_are_those_of_its_plan(fassd_net):
    """The second convolution of the stem: 16 to 24 channels at 512x1024, 3x3."""
    launch = fassd_net.launches[1]
    plan = SimpleNamespace(**conv((16,), 24, (512, 1024))["blocks"][0])
    assert (launch.blocks, launch.resident) == (plan.blocks, plan.resident)
    assert launch.waves == plan.blocks / (132 * plan.resident)
    assert launch.issued == 2 * plan.blocks * plan.products
    assert launch.loaded == plan.blocks * plan.loaded
    body = max(plan.cycles / 1.83e9, launch.bytes / (4.8e12 * 0.85), launch.issued / 989e12)
    assert launch.predicted == pytest.approx(body + 1.5e-6)


def test_tf32_is_answered_where_the_gpu_has_it():
    t4 = predict.find_device("t4")
    for device, tf32, arithmetic in ((H200, True, "tf32"), (H200, False, "float32")):
        found = conv((16,), 16, (8, 8), dtype=torch.float32, device=device, tf32=tf32)
        assert found["arithmetic"] == arithmetic
    found = conv((16,), 16, (8, 8), dtype=torch.float32, device=t4, tf32=True)
    assert found["arithmetic"] == "float32"


# --- several convolutions in one launch -----------------------------------------------------------


def alternatives(monkeypatch, ask):
    """What is launched by itself, together where that is possible, and apart."""
    found = [ask()]
    for asked in ("always", "never"):
        monkeypatch.setenv(FUSION, asked)
        found.append(ask())
    monkeypatch.delenv(FUSION)
    return found


def rank(launches):
    """That of launches one after the other, with the gaps between them."""
    return sum(launch["rank"] for launch in launches) + GAP * (len(launches) - 1)


SQUARE_PAIRS = [
    partial(pair, size, width, width, width, dilation)
    for size in [(4, 8), (16, 32), (32, 64), (64, 128), (128, 256), (256, 512)]
    for width in (8, 31, 61, 112)
    for dilation in (1, 4, 36)
]


def test_two_convolutions_are_one_launch_where_that_pays(monkeypatch):
    for ask in SQUARE_PAIRS:
        own, together, apart = alternatives(monkeypatch, ask)
        assert [x["kernel"] for x in together] == ["pair_kernel"], ask
        assert [x["kernel"] for x in apart] == ["convolution_kernel"] * 2, ask
        assert own == (together if rank(together) <= rank(apart) else apart), ask


@pytest.mark.parametrize("size", [(8, 16), (16, 32), (32, 64), (64, 128)])
def test_branches_are_one_launch_where_that_pays(monkeypatch, size):
    """Those of half a wave share the multiprocessors: as long as one, not as all of them."""
    own, together, apart = alternatives(monkeypatch, lambda: branches(size, 224, 112, (12, 24, 36)))
    assert len(apart) == 7
    if len(together) == 1:
        blocks = together[0]["blocks"]
        waves = [b["blocks"] / H200.multiprocessors for b in blocks]
        spread = sum(b["cycles"] / math.ceil(w) * w for b, w in zip(blocks, waves, strict=True))
        longest = max(b["cycles"] for b in blocks)
        assert together[0]["cycles"] == pytest.approx(max(longest, spread))
        assert len({(b["warps"], b["n_tiles"]) for b in blocks}) == 1
        assert own == (together if rank(together) <= rank(apart) else apart)


def test_more_branches_than_a_launch_takes(monkeypatch):
    monkeypatch.setenv(FUSION, "always")
    assert len(branches((32, 64), 64, 32, (2, 4, 6))) == 1
    assert len(branches((32, 64), 64, 32, (2, 4, 6, 8))) == 9


def test_a_wide_pair_is_two_launches(monkeypatch):
    monkeypatch.setenv(FUSION, "always")
    launches = pair((16, 32), 40, 136, 136, 2)
    taps = [x["blocks"][0]["taps"] for x in launches]
    assert [(x["label"], x["channels"], x["kernel"]) for x in launches] == [
        ("asymmetric 3x1", "40>136", "convolution_kernel"),
        ("asymmetric 1x3", "136>136", "convolution_kernel"),
    ]
    assert taps == [3, 3]
    assert [x["bytes"] for x in launches] == [
        2 * (512 * (40 + 136) + 3 * 40 * 136),
        2 * (512 * (136 + 136) + 3 * 136 * 136),
    ]


def test_branches_of_one_launch(monkeypatch):
    monkeypatch.setenv(FUSION, "always")
    (found,) = branches((32, 64), 224, 112, (12, 24), batch=2)
    launch = Model(H200, torch.float16).launch(found)
    blocks = found["blocks"]
    assert launch.label == "dapf branches" and launch.kernel == "pair_kernel"
    assert launch.channels == "224>112, 2x 224>112>112"
    assert launch.taps == "+".join(str(b["taps"]) for b in blocks)
    assert launch.blocks == sum(b["blocks"] for b in blocks)
    assert launch.resident == min(b["resident"] for b in blocks)
    assert launch.shared_bytes == max(b["shared_bytes"] for b in blocks)
    weights = 224 * 112 + 2 * 3 * 112 * (224 + 112)
    assert launch.bytes == 2 * (2 * 32 * 64 * (224 + 3 * 112) + weights)


def test_layers_of_a_block():
    """What others read and the block gives is written twice: to the result, and for the others."""
    launches = block((64, 128), 48, (10, 18, 10, 28))
    assert [x["channels"] for x in launches] == ["48>10", "10+48>18", "18>10", "10+18+48>28"]
    assert launches[2]["bytes"] == 2 * (64 * 128 * (18 + 2 * 10) + 9 * 18 * 10)


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
        parts = ("memory", "cache", "shared memory", "arithmetic", "issue", "waiting")
        assert launch.bound in parts
        assert launch.issue <= launch.predicted, launch


def test_a_batch_pays(light):
    batch = predict.predict_network("fassd_net_l2", 256, 512, H200, batch=8)
    assert batch.total("operations") == 8 * light.total("operations")
    assert light.predicted < batch.predicted < 8 * light.predicted


def test_tf32_is_half_the_rate_of_halves():
    assert Model(H200, torch.float32).rates == {
        "half": 989e12,
        "tf32": 989e12 / 2,
        "float32": 67e12,
    }
    assert Model(predict.find_device("t4"), torch.float16).rates["half"] == 65e12


def test_a_network_of_other_parts():
    prediction = predict.predict_network("baseline_aspp", 256, 512, H200)
    labels = [launch.label for launch in prediction.launches]
    assert sum(label.startswith("aspp") for label in labels) == 8
    (mean,) = labelled(prediction, "aspp mean")
    assert (mean.kernel, mean.bytes, mean.blocks) == ("mean_kernel", 2 * 8 * 16 * 224, 0)
    assert not any(label.startswith(("dapf", "mda")) for label in labels)


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
    monkeypatch.setattr(predict.torch.ops, "fassd_kernels_plan", SimpleNamespace())
    with pytest.raises(ImportError, match=r"C\+\+ extension.*pip install"):
        predict.predict_network("fassd_net", 64, 64, H200)
