import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fassd
from fassd.inference import fields, strips
from fassd.inference.fields import UnboundedError, field_of
from fassd.inference.large import labelled
from fassd.inference.segmenter import Segmenter
from fassd.inference.steps import run
from fassd.io.palette import IGNORE
from fassd.io.tiff import ArrayRows
from fassd.models import MDA
from fassd.models.info import set_temperature
from fassd.models.layers import Rows, interpolate, interpolate_rows
from fassd.models.preprocess import normalize
from fassd_kernels.graphs.steps import repeatable


def network_of(name, seed=0, **options):
    """A network of which no part is an identity by chance: its batch norms have statistics."""
    torch.manual_seed(seed)
    network = fassd.create_model(name, 19, **options)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, 0, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.3)
    return network


def picture_of(height, width, seed=0):
    """Blocks under noise, so that labels have borders everywhere."""
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 180, (height // 8 + 1, width // 8 + 1, 3))
    blocks = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    return (blocks + draw.integers(0, 76, blocks.shape)).astype(np.uint8)


def in_strips(segmenter, picture, folder, **options):
    """Labels and scores of a picture, computed in strips."""
    steps = strips.plan(segmenter, ArrayRows(picture), folder).steps
    run(steps[:-1], folder, "", **options)
    scores = steps[-2].targets[0].map
    scores = scores.read(0, scores.height).clone()
    run(steps, folder, "", **options)
    labels = steps[-1].targets[0].map
    return labels.read(0, labels.height)[0, 0].numpy(), scores


def scores_of(segmenter, picture):
    batch = torch.from_numpy(normalize(picture))[None].to(segmenter.dtype)
    with torch.inference_mode():
        return segmenter.model.scores(batch)


SIZES = [(331, 217, 64), (258, 140, 1), (519, 129, 333), (200, 300, 4096)]


@pytest.mark.parametrize("name", fassd.list_models())
@pytest.mark.parametrize(("height", "width", "rows"), SIZES[:1])
def test_every_network_gives_the_scores_of_the_whole_picture(name, height, width, rows, tmp_path):
    segmenter = Segmenter(network_of(name))
    picture = picture_of(height, width)
    labels, scores = in_strips(segmenter, picture, tmp_path, rows=rows)
    assert torch.equal(scores, scores_of(segmenter, picture))
    whole = segmenter.predict(picture)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, whole)
    assert len(np.unique(whole)) > 1


@pytest.mark.parametrize(
    ("name", "dtype", "size"),
    [
        ("fassd_net", torch.float32, SIZES[1]),
        ("fassd_net", torch.bfloat16, SIZES[3]),
        ("fassd_net_l1", torch.float32, SIZES[2]),
        ("fassd_net_l1", torch.bfloat16, SIZES[1]),
        ("fassd_net_l2", torch.float32, SIZES[3]),
        ("fassd_net_l2", torch.bfloat16, SIZES[2]),
    ],
)
def test_odd_sizes_and_strips(name, dtype, size, tmp_path):
    height, width, rows = size
    segmenter = Segmenter(network_of(name), dtype=dtype)
    picture = picture_of(height, width)
    labels, scores = in_strips(segmenter, picture, tmp_path, rows=rows)
    assert torch.equal(scores, scores_of(segmenter, picture))
    np.testing.assert_array_equal(labels, segmenter.predict(picture))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_more_classes_than_a_byte_names(backend, tmp_path):
    network = network_of("fassd_net_l2")
    network.finalConv = nn.Conv2d(64, 300, 1)
    segmenter = Segmenter(network, backend=backend)
    picture = picture_of(140, 100)
    steps = strips.plan(segmenter, ArrayRows(picture), tmp_path).steps
    run(steps, tmp_path, "", rows=48)
    labels = steps[-1].targets[0].map.read(0, 140)[0, 0].numpy()
    whole = segmenter.predict(picture)
    assert labels.dtype == whole.dtype == np.uint16
    assert (labels == whole).mean() >= (1 if backend == "auto" else 0.999)


def confident_in_strips(segmenter, picture, folder, measure, least=None, **options):
    options |= {"confidence": measure, "min_confidence": least}
    with labelled(segmenter, ArrayRows(picture, 1), folder, **options) as rows:
        return rows.read_all(0, rows.height)


@pytest.mark.parametrize(
    ("measure", "dtype", "rows"),
    [
        ("probability", torch.float32, 64),
        ("margin", torch.bfloat16, 4),
        ("entropy", torch.float32, 200),
    ],
)
def test_certainty_is_that_of_the_whole_picture(measure, dtype, rows, tmp_path):
    network = network_of("fassd_net_l2")
    set_temperature(network, 0.7)
    segmenter = Segmenter(network, dtype=dtype)
    picture = picture_of(331, 217)
    expected = segmenter.predict(picture, confidence=measure)
    found = confident_in_strips(segmenter, picture, tmp_path / "a", measure, rows=rows)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found[1])) > 20
    least = np.median(expected[1]) / 255
    labels, _ = confident_in_strips(segmenter, picture, tmp_path / "b", measure, least, rows=rows)
    unsure = expected[1] < 255 * least
    assert 0 < unsure.mean() < 1
    np.testing.assert_array_equal(labels, np.where(unsure, IGNORE, expected[0]))


def test_certainty_of_plain_pytorch_is_that_of_the_whole_picture_but_for_rounding(tmp_path):
    segmenter = Segmenter(network_of("fassd_net_l2"), backend="reference")
    picture = picture_of(258, 140)
    expected = segmenter.predict(picture, confidence="margin")
    labels, certainty = confident_in_strips(segmenter, picture, tmp_path / "a", "margin", rows=48)
    assert (labels == expected[0]).mean() > 0.9999
    assert np.abs(certainty.astype(int) - expected[1]).max() <= 1


def test_no_certainty_of_more_classes_than_a_byte_names(tmp_path):
    network = fassd.create_model("fassd_net_l2", 256)
    picture = picture_of(64, 64)
    with pytest.raises(ValueError, match="writes 255, which is a class here"):
        confident_in_strips(Segmenter(network), picture, tmp_path / "a", "margin", 0.5)
    network = fassd.create_model("fassd_net_l2", 300)
    with pytest.raises(ValueError, match="needs at most 256 classes, the network has 300"):
        confident_in_strips(Segmenter(network), picture, tmp_path / "a", "margin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fassd_net", "fc_hardnet_70", "baseline_aspp_mda"])
def test_plain_pytorch_gives_the_whole_pictures_scores_but_for_rounding(name, tmp_path):
    segmenter = Segmenter(network_of(name), backend="reference")
    picture = picture_of(331, 217)
    kept = []
    segmenter.model.finalConv.register_forward_hook(lambda *call: kept.append(call[2]))
    labels, scores = in_strips(segmenter, picture, tmp_path, rows=64)
    whole = segmenter.predict(picture)
    assert (scores - kept[-1]).norm() / scores.norm() < 2e-6
    assert (labels == whole).mean() > 0.9999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("low, high", [((41, 27), (83, 55)), ((1, 3), (5, 9)), ((9, 5), (9, 7))])
def test_resized_rows_are_those_of_the_whole(low, high, dtype):
    x = torch.randn(2, 3, *low, dtype=dtype)
    whole = interpolate(x, high)
    accuracy = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for first, last in ((0, 1), (0, high[0]), (2, 5), (high[0] - 1, high[0])):
        rows = Rows(0, low[0], first, high[0])
        begin, end = rows.read(last - first)
        strip = interpolate_rows(
            x[:, :, begin:end], (last - first, high[1]), rows._replace(low=begin)
        )
        torch.testing.assert_close(strip, whole[:, :, first:last], rtol=accuracy, atol=accuracy)


def test_resized_rows_of_large_maps_are_rounded_as_the_whole():
    x = torch.randn(1, 5, 82, 54)
    whole = interpolate(x, (331, 217))
    rows = Rows(0, 82, 100, 331)
    begin, end = rows.read(90)
    strip = interpolate_rows(x[:, :, begin:end], (90, 217), rows._replace(low=begin))
    assert torch.equal(strip, whole[:, :, 100:190])


def reach_of(part, channels, height=512):
    """Rows above and below that a NaN in the middle row of the input spreads to."""
    x = torch.zeros(1, channels, height, 8)
    x[:, :, height // 2] = torch.nan
    with torch.no_grad():
        rows = part.eval()(x).isnan().any(1)[0].any(1).nonzero().flatten() - height // 2
    return int(rows.min()), int(rows.max())


@pytest.mark.parametrize("name", ["mda", "DAPF", "denseBlocksUp"])
def test_a_field_covers_what_reaches_a_row(name):
    network = fassd.create_model("fassd_net", 19)
    part, channels = {
        "mda": (network.mda[0], network.mda[0].nIn),
        "DAPF": (network.DAPF, 224),
        "denseBlocksUp": (network.denseBlocksUp[0], network.denseBlocksUp[0].in_channels),
    }[name]
    field = field_of([(name, part)], (512, 8))
    above, below = reach_of(part, channels)
    assert field.reach >= max(-above, below) > 0
    assert (field.stride, field.height, field.width) == (1, 512, 8)


@pytest.mark.parametrize(
    ("kernel", "dilation", "reach"),
    [((3, 3), 1, 4), ((3, 1), 1, 4), ((3, 1), 2, 2), ((1, 3), 1, 0), ((1, 1), 1, 0)],
)
def test_rows_of_a_tile_are_read_together(kernel, dilation, reach):
    padding = [dilation * (side // 2) for side in kernel]
    conv = nn.Conv2d(24, 24, kernel, padding=padding, dilation=dilation)
    assert field_of([("conv", conv)], (64, 64)).reach == reach


def test_a_field_of_strided_layers():
    network = fassd.create_model("fassd_net_l1", 19)
    parts = [(str(i), network.base[i]) for i in range(network.ends()[0])]
    field = field_of(parts, (1000, 700))
    with torch.no_grad():
        shape = network.eval().encode_part(torch.zeros(1, 3, 1000, 700), 0, len(parts)).shape
    assert (field.height, field.width) == tuple(shape[2:])
    assert field.stride == 6


class Foreign(nn.Module):
    def forward(self, x):
        return x - x.mean((2, 3), keepdim=True)


def test_modules_that_see_an_unknown_part_are_named(tmp_path):
    network = network_of("fassd_net")
    network.mda[1] = Foreign()
    segmenter = Segmenter(network, backend="reference")
    with pytest.raises(UnboundedError, match=r"mda\.1 is a Foreign.*how far it sees"):
        strips.plan(segmenter, ArrayRows(picture_of(64, 64)), tmp_path)

    class Other(MDA):
        def forward(self, x):
            return x - x.mean()

    network.mda[1] = Other(network.mda[1 - 1].nIn, 2)
    with pytest.raises(UnboundedError, match=r"mda\.1 is a Other"):
        segmenter = Segmenter(network, backend="reference")
        strips.plan(segmenter, ArrayRows(picture_of(64, 64)), tmp_path)


def test_a_context_module_that_sees_all_is_given_the_whole_map(tmp_path):
    network = network_of("fassd_net")
    network.DAPF = Foreign()
    segmenter = Segmenter(network)
    picture = picture_of(300, 200)
    _, scores = in_strips(segmenter, picture, tmp_path, rows=32)
    assert torch.equal(scores, scores_of(segmenter, picture))


def test_other_networks_and_small_pictures_are_refused(tmp_path):
    plain = Segmenter(nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(UnboundedError, match="got a Sequential"):
        strips.plan(plain, ArrayRows(picture_of(64, 64)), tmp_path)
    segmenter = Segmenter(network_of("fassd_net"))
    with pytest.raises(ValueError, match=r"at least 29x29 pixels for this variant, got 20x64"):
        strips.plan(segmenter, ArrayRows(picture_of(20, 64)), tmp_path)
    sized = Segmenter(network_of("fassd_net"), size=(64, 64))
    with pytest.raises(ValueError, match="own size: no other size can be given"):
        strips.plan(sized, ArrayRows(picture_of(64, 64)), tmp_path)


@pytest.mark.parametrize("views", [{"flip": True}, {"scales": (0.5, 1.0)}])
def test_several_views_are_refused(views, tmp_path):
    segmenter = Segmenter(network_of("fassd_net_l2"), **views)
    with pytest.raises(ValueError, match="neither scales nor flip"):
        strips.plan(segmenter, ArrayRows(picture_of(64, 64)), tmp_path)


@pytest.mark.parametrize("tiles", [None, 64])
def test_bands_are_refused(tiles, tmp_path):
    segmenter = Segmenter(network_of("fassd_net_l2", in_channels=5))
    work = labelled(segmenter, ArrayRows(picture_of(64, 64)), tmp_path / "a", tiles=tiles)
    with pytest.raises(ValueError, match="5 bands cannot be done by strips or tiles"), work:
        pass
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    segmenter = Segmenter(network_of("fassd_net_l2"))
    picture = picture_of(400, 150)
    shares = []

    def interrupt(share):
        shares.append(share)
        if len(shares) in (3, 9):
            raise KeyboardInterrupt

    steps = strips.plan(segmenter, ArrayRows(picture), tmp_path).steps
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(steps, tmp_path, "one", rows=64, progress=interrupt)
    run(steps, tmp_path, "one", rows=64, progress=interrupt)
    assert shares == sorted(set(shares)) and shares[-1] == 1  # nothing was done twice
    labels = steps[-1].targets[0].map.read(0, 400)[0, 0].numpy()
    np.testing.assert_array_equal(labels, segmenter.predict(picture))
    kept = {path.name for path in tmp_path.glob("*.raw")}
    assert kept == {"labels.raw"}
    again = []
    run(steps, tmp_path, "another", rows=64, progress=again.append)
    assert len(again) == len(shares)


def test_memory_disk_and_another_process(tmp_path, monkeypatch):
    segmenter = Segmenter(network_of("fassd_net"))
    picture = ArrayRows(picture_of(400, 150))
    steps = strips.plan(segmenter, picture, tmp_path).steps
    rows = steps[0].least_rows()
    told = rf"memory of 1,000 bytes is .* encoder-1, {rows} rows of its input, takes [\d,]+ b"
    scratch = tmp_path / "scratch"
    with pytest.raises(ValueError, match=told), labelled(segmenter, picture, scratch, memory=1000):
        pass
    assert not scratch.exists()
    assert all(step.units_within(0, None, 400) == 1 for step in steps if not step.whole)
    with labelled(segmenter, picture, scratch, rows=400) as labels:
        other = labelled(segmenter, picture, scratch)
        with pytest.raises(OSError, match="is in use by another process"), other:
            pass
        assert labels.read(0, 400).shape == (400, 150)
    assert not scratch.exists()
    free = type("Usage", (), {"free": 10})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(OSError, match=r"take 0\.\d GB, and 0\.0 GB"):
        run(steps, tmp_path, "")


PEAK = """
import resource, sys, numpy, torch
sys.path.insert(0, {tests!r})
from fassd.inference import fields, strips
from fassd.inference.segmenter import Segmenter
from fassd.inference.steps import run
import fassd
class Rows:
    height, width, identity = int(sys.argv[1]), 256, ""
    def read(self, first, last):
        return numpy.full((last - first, 256, 3), 90, numpy.uint8)
torch.set_num_threads(1)
segmenter = Segmenter(fassd.create_model("fassd_net_l2", 19))
segmenter.predict(numpy.zeros((64, 64, 3), numpy.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from pathlib import Path
folder = Path(sys.argv[2])
folder.mkdir()
steps = strips.plan(segmenter, Rows(), folder).steps
run(steps, folder, "", memory={memory})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_height(tmp_path):
    memory = 40_000_000
    script = PEAK.format(tests=str(Path(__file__).parent), memory=memory)
    peaks = []
    for height in (1000, 6000):
        command = [sys.executable, "-c", script, str(height), str(tmp_path / str(height))]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        peaks.append(1024 * int(done.stdout))
    assert peaks[1] < peaks[0] + 10_000_000
    assert max(peaks) < 1.5 * memory


@pytest.mark.parametrize(
    ("encoder", "backend"),
    [
        ("mobilenetv4_conv_small", "auto"),
        pytest.param("resnet18d", "reference", marks=pytest.mark.slow),
    ],
)
def test_an_encoder_of_timm(encoder, backend, tmp_path):
    segmenter = Segmenter(network_of("fassd_net", encoder=encoder), backend=backend)
    picture = picture_of(2411, 70)
    encode, *_ = steps = strips.plan(segmenter, ArrayRows(picture), tmp_path).steps
    begin, end = encode.input_rows(36, 40)
    assert 0 < begin < 36 * 32 and 40 * 32 < end < 2411  # strips are strips
    assert begin % 128 == end % 128 == 0
    run(steps, tmp_path, "", rows=8 * 32)
    labels = steps[-1].targets[0].map.read(0, 2411)[0, 0].numpy()
    with repeatable():
        equal = (labels == segmenter.predict(picture)).mean()
    assert equal == 1 if backend == "auto" else equal > 0.9999


@pytest.mark.parametrize(
    ("encoder", "told"),
    [
        ("mobilenetv3_small_050", r"sees the whole picture, in base\.\S*se, a SqueezeExcite"),
        ("swin_tiny_patch4_window7_224", "depends on where it lies in the picture"),
    ],
)
def test_encoders_that_see_the_whole_picture(encoder, told, tmp_path, monkeypatch):
    monkeypatch.setattr(fields, "PROBED", (2048,))
    network = fassd.create_model("fassd_net", 19, encoder=encoder)
    segmenter = Segmenter(network, backend="reference")
    with pytest.raises(UnboundedError, match=told):
        strips.plan(segmenter, ArrayRows(picture_of(200, 200)), tmp_path)
