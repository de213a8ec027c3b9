"""Networks of other inputs than three colours: from their names to labels on the command line."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from cli.conftest import PLAIN
from PIL import Image
from safetensors import safe_open

import fassd
import fassd_kernels
from fassd.bench.costs.counts import analyze
from fassd.data import SegmentationDataset, TrainTransform, load_card
from fassd.data.card import CardError
from fassd.export import SUFFIX_OF, ExportedNetwork, Exporter, Request, verify
from fassd.inference.segmenter import Segmenter
from fassd.io.images import ImageError, write_image
from fassd.models import info_of, preprocessing_of
from fassd.models.encoder import import_timm
from fassd.models.preprocess import Preprocessing, normalize
from fassd.models.variants import full_name, get_variant
from fassd.training import evaluate

tifffile = pytest.importorskip("tifffile")

CARD = """
name: field
classes: [{name: soil, ids: 1}, {name: crop, ids: 2}]
splits: {train: train, val: val}
images: "{split}/{name}.tif"
range: [0, 4095]
bands: {count: 5, mean: [0.5, 0.5, 0.5, 0.4, 0.5], std: [0.3, 0.3, 0.3, 0.2, 0.3]}
masks: {files: "{split}/masks/{name}.png", values: ids}
"""
OWN = Preprocessing((0.5, 0.5, 0.5, 0.4, 0.5), (0.3, 0.3, 0.3, 0.2, 0.3), "bands")


@pytest.fixture
def field(tmp_path):
    """Pictures of five bands of 12 bits, of which the fourth tells the classes."""
    rng = np.random.default_rng(0)
    for split, names in (("train", "ab"), ("val", "c")):
        for name in names:
            labels = np.kron(rng.integers(0, 2, (3, 4)), np.ones((32, 32), int))
            bands = rng.integers(0, 4096, (96, 128, 5))
            bands[..., 3] = 500 + 2500 * labels
            write_image(tmp_path / split / f"masks/{name}.png", (labels + 1).astype(np.uint8))
            path = tmp_path / split / f"{name}.tif"
            tifffile.imwrite(path, bands.astype(np.uint16), planarconfig="contig")
    (tmp_path / "card.yaml").write_text(CARD)
    return tmp_path


# ---------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("count", [1, 2, 4, 5, 13])
def test_any_number_of_channels(count):
    torch.manual_seed(0)
    model = fassd.create_model("fassd_net_l2", 5, in_channels=count).eval()
    fast = fassd_kernels.accelerate(model)
    batch = torch.randn(2, count, 70, 97)
    with torch.inference_mode():
        expected = model.double()(batch.double())
        error = (fast(batch) - expected).norm() / expected.norm()
        assert error < 2e-6 * 100  # of a whole network
        assert (fast.predict_labels(batch) == expected.argmax(1)).float().mean() > 0.999
    assert preprocessing_of(fast) == Preprocessing.of_bands(count)
    with pytest.raises(ValueError, match=rf"must have shape \(N, {count}, H, W\), got \(1, 3, 70"):
        fast(torch.zeros(1, 3, 70, 97))
    assert model.base[0].conv.weight.shape == (16, count, 3, 3)


def test_names():
    assert full_name("fassd_net", in_channels=5) == "fassd_net+bands5"
    assert full_name("fassd_net", in_channels=3) == full_name("fassd_net+bands3") == "fassd_net"
    whole = "fassd_net@resnet18d+light+dilations6-12-18+bands2"
    assert full_name("fassd_net", "resnet18d", True, (6, 12, 18), 2) == full_name(whole) == whole
    assert get_variant("fassd_net+bands5").title == "FASSD-Net, 5 bands"
    assert get_variant("fassd_net+bands5").preprocessing == Preprocessing.of_bands(5)
    assert fassd.create_model("baseline+bands4").in_channels == 4
    with pytest.raises(ValueError, match=r"has in_channels 5, asked for was 4"):
        full_name("fassd_net+bands5", in_channels=4)
    for wrong in (0, -1, 1.5, "5", True):
        with pytest.raises(ValueError, match="in_channels must be an integer of at least 1, got"):
            fassd.create_model("fassd_net", in_channels=wrong)
    with pytest.raises(ValueError, match="in_channels must be an integer from 1 to 512, got 513"):
        fassd.create_model("fassd_net", in_channels=513)
    for unknown in ("fassd_net+bands0", "fassd_net+bands", "fassd_net+bands5x"):
        with pytest.raises(ValueError, match="unknown model"):
            fassd.create_model(unknown)
    with pytest.raises(ValueError, match=r"none were published for 'fassd_net\+bands5'"):
        fassd.create_model("fassd_net", in_channels=5, weights="streets")


def test_an_encoder_of_timm():
    import_timm()
    model = fassd.create_model("baseline", 4, encoder="resnet18d", in_channels=5).eval()
    assert model(torch.zeros(1, 5, 64, 96)).shape == (1, 4, 64, 96)
    assert preprocessing_of(model) == Preprocessing.of_bands(5)


def test_preprocessing_is_checked():
    for mean, std, channels, message in (
        ([0.5], [0.2, 0.2], "bands", "must be equally many"),
        ([], [], "bands", "must be equally many"),
        ([0.5] * 4, [0.2] * 4, "RGB", "RGB has three channels, got a mean of 4"),
        ([0.5] * 4, [0.2, 0.2, 0.2, 0], "bands", "std above 0"),
        ([0.5] * 3, [0.2] * 3, "GBR", "channels must be BGR, RGB or bands, got 'GBR'"),
    ):
        with pytest.raises(ValueError, match=message):
            Preprocessing.checked(mean, std, channels)
    image = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    expected = (image / 255.0 - OWN.mean) / OWN.std
    np.testing.assert_allclose(normalize(image, OWN), np.moveaxis(expected, 2, 0), rtol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(H, W, 5\), got uint8 of shape \(2, 3, 4"):
        normalize(image[..., :4], OWN)


def test_what_it_costs():
    """Of the first convolution 2 * 16 * 9 more products at each of its pixels."""
    own, plain = (
        analyze(fassd.create_model("fassd_net_l2", in_channels=n), (64, 96)) for n in (5, 3)
    )
    assert own.conv_macs - plain.conv_macs == 2 * 16 * 9 * 32 * 48


def test_what_takes_colours_alone_says_so():
    fast = fassd_kernels.accelerate(fassd.create_model("fassd_net_l2", in_channels=5).eval())
    with pytest.raises(ValueError, match="pictures have three channels, the network takes 5"):
        fast.label_pictures(torch.zeros(1, 64, 96, 3, dtype=torch.uint8), [1] * 5, [1] * 5)


@pytest.mark.parametrize("batch", [None, 2])
def test_a_runner_takes_frames_of_bands(batch):
    model = fassd.create_model("fassd_net_l2", in_channels=5).eval()
    run = fassd_kernels.Runner(model, size=(64, 96), device="cpu", batch=batch)
    frames = np.random.default_rng(0).integers(0, 256, run.shape, np.uint8)
    assert frames.shape[-1] == 5
    labels, segmenter = run(frames), Segmenter(model, device="cpu")
    assert (labels == segmenter.predict(frames)).mean() > 0.999  # normalised in float32
    with pytest.raises(ValueError, match=r"expected uint8 of shape .*5\)"):
        run(frames[..., :3])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("onnx", {"preprocess": True, "output": "labels+confidence"}),
        ("torch", {"backend": "auto", "preprocess": True, "output": "labels"}),
    ],
)
def test_files_take_bands(kind, settings, tmp_path):
    for name in ("onnx", "onnxruntime") if kind == "onnx" else ():
        pytest.importorskip(name)
    exporter = Exporter(Request("fassd_net_l2+bands5", kind, **{"size": (64, 96), **settings}))
    path = tmp_path / f"net{SUFFIX_OF[kind][0]}"
    exporter.write(path)
    network, rng = ExportedNetwork(path), np.random.default_rng(0)
    assert network.metadata == exporter.metadata
    shape = network.metadata.input_shape
    assert shape[-1 if network.takes_pictures else 1] == 5
    pictures = [rng.integers(0, 256, (64, 96, 5), np.uint8) for _ in range(2)]
    result = verify(network, exporter.source, pictures, labels_limit=0.995)
    assert result.passed, str(result)
    segmenter = Segmenter(network)
    assert segmenter.bands == 5
    expected = Segmenter(exporter.source, backend="reference").predict(pictures[0])
    assert (segmenter.predict(pictures[0]) == expected).mean() > 0.99
    with pytest.raises(ImageError, match=r"an array must be \(H, W, 5\)"):
        segmenter.predict(pictures[0][..., :3])


def test_the_command_exports_bands(field, succeed, refusal):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    words = ("export", "fassd_net_l2+bands5", "-o", field / "net.onnx", "--size", "96x128")
    told = succeed(*words, "--pictures", field / "val/c.tif", "--preprocess", "--threads", 1).stderr
    assert "verified: 100.000% of labels equal" in " ".join(told.split())
    out = field / "out"
    succeed("predict", field / "val/c.tif", "-o", out, "-m", field / "net.onnx")
    assert np.array(Image.open(out / "c_trainids.png")).shape == (96, 128)
    Image.new("RGB", (128, 96)).save(field / "rgb.png")
    error = refusal("predict", field / "rgb.png", "-o", out, "-m", field / "net.onnx")
    assert "rgb.png: has 3 bands; the network takes 5" in error


def test_arrays_in_files(tmp_path, succeed):
    segmenter = Segmenter(fassd.create_model("fassd_net_l2", in_channels=5), device="cpu")
    bands = np.random.default_rng(0).integers(0, 256, (70, 97, 5), np.uint8)
    expected = segmenter.predict(bands)
    deep = bands.astype(">u2") * 257
    for name, values in {"a": bands, "b": np.asfortranarray(bands), "c": deep}.items():
        np.save(tmp_path / f"{name}.npy", values)
        np.testing.assert_array_equal(segmenter.predict(tmp_path / f"{name}.npy"), expected)
    content = (tmp_path / "a.npy").read_bytes()
    np.testing.assert_array_equal(segmenter.predict(content), expected)
    for damaged, told in (
        (content[:5000], "is truncated: 4,872 of 33,950 bytes"),
        (content.replace(b"(70, 97, 5)", b"(7000000, 97000, 5)"), "has 7000000x97000 pixels"),
        (content.replace(b"(70, 97, 5)", b"(-70, 97, 5)"), "holds an array of shape"),
        (content.replace(b"(70, 97, 5)", b"(5, 6790)  "), "has 1 bands; the network takes 5"),
        (content.replace(b"'|u1'", b"'|O' "), "holds values of object, not numbers"),
        (content[:60], "damaged or truncated"),
        (content[:6] + b"\x03" + content[7:], "version 3"),
    ):
        with pytest.raises(ImageError, match=told):
            segmenter.predict(damaged)
    out = tmp_path / "out"
    succeed("predict", tmp_path / "a.npy", "-o", out, "-m", "fassd_net_l2+bands5", *PLAIN)
    assert np.array(Image.open(out / "a_trainids.png")).shape == (70, 97)


# --------------------------------------------------------------------------------------- segmenter


@pytest.mark.parametrize("size", [None, (64, 80)])
def test_segmenter(tmp_path, size):
    torch.manual_seed(0)
    model = fassd.create_model("fassd_net_l2", 4, in_channels=5)
    model.preprocessing = OWN
    segmenter = Segmenter(model, backend="reference", size=size)
    assert segmenter.bands == 5
    bands = np.random.default_rng(0).integers(0, 256, (70, 97, 5), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, bands, planarconfig="contig", photometric="minisblack")
    labels = segmenter.predict(bands)
    if size is None:
        with torch.inference_mode():
            expected = model.eval()(torch.from_numpy(normalize(bands, OWN))[None])
        np.testing.assert_array_equal(labels, expected[0].argmax(0))
    tensor = torch.from_numpy(bands)
    for image in (path, path.read_bytes(), bands / 255, tensor, tensor.permute(2, 0, 1)):
        np.testing.assert_array_equal(segmenter.predict(image), labels)
    batch = tensor.permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    np.testing.assert_array_equal(segmenter.predict(batch), [labels] * 2)
    flipped = Segmenter(model, backend="reference", size=size, flip=True)
    np.testing.assert_array_equal(
        flipped.predict(bands), flipped.predict(np.ascontiguousarray(bands[:, ::-1]))[:, ::-1]
    )
    with pytest.raises(ImageError, match=r"picture 0: an array must be \(H, W, 5\), got \(70"):
        segmenter.predict([bands[..., :3]])
    with pytest.raises(ValueError, match="order is for three colours; the network takes 5 bands"):
        segmenter.predict(bands, order="BGR")
    Image.fromarray(bands[..., :3]).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match=r"^.*b\.png: has 3 bands; the network takes 5$"):
        segmenter.predict(tmp_path / "b.png")


# ------------------------------------------------------------------------------------- whole chain


def test_from_a_card_to_labels(field, succeed, refusal):
    """Trained a little on bands, of which the fourth tells all; scored, loaded, and used."""
    run = field / "run"
    words = (
        "--data", field, "-o", run, "--steps", 40, "--batch", 4, "--threads", 1, "--device", "cpu",
        "-s", "crop=[64,64]", "-s", "warmup=1", "-s", "val_every=0", "-s", "loss=cross_entropy",
        "-s", "jitter=0", "-s", "encoder=random", "--lr", 0.03,
    )  # fmt: skip
    error = refusal("train", *words, "-m", "fassd_net_l2")
    assert "fassd_net_l2 takes 3 channels" in error
    assert re.search(r"have 5: --model fassd_net_l2\+bands5", error)
    assert "0 errors, 0 warnings" in succeed("data", "check", field).stderr
    succeed("train", *words, "-m", "fassd_net_l2+bands5")

    with (run / "log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]

    weights = run / "last.safetensors"
    with safe_open(weights, "np") as file:
        network = json.loads(file.metadata()["fassd"])["network"]
    assert network["model"] == "fassd_net_l2+bands5"
    model = fassd.load(weights)
    assert preprocessing_of(model) == info_of(model).preprocessing == OWN
    result = succeed("val", "--data", field, "-w", weights, *PLAIN, "--json", field / "s.json")
    assert "soil" in result.stdout
    accuracy = json.loads((field / "s.json").read_text())["pixel_accuracy"]

    out = field / "out"
    done = succeed(
        "predict", field / "val/c.tif", "-o", out, "-w", weights, "--range", "0:4095", *PLAIN,
        "--label-ids", field, "--probabilities", "npz", "--confidence", "margin",
    )  # fmt: skip
    assert "values from 0 to 4095" in done.stderr
    labels = np.array(Image.open(out / "c_trainids.png"))
    truth = np.array(Image.open(field / "val/masks/c.png"))
    assert (labels + 1 == truth).mean() == pytest.approx(accuracy)
    np.testing.assert_array_equal(np.array(Image.open(out / "c_labelids.png")), labels + 1)
    assert np.array(Image.open(out / "c_overlay.png")).shape == (96, 128, 3)

    with np.load(out / "c_probabilities.npz") as content:
        assert (content["probabilities"].argmax(0) == labels).mean() > 0.99
    assert np.array(Image.open(out / "c_confidence.png")).shape == (96, 128)

    Image.new("RGB", (128, 96)).save(field / "rgb.png")
    error = refusal("predict", field / "rgb.png", "-o", out, "-w", weights, *PLAIN)
    assert "rgb.png: has 3 bands; the network takes 5" in error
    error = refusal("val", "--data", field, "-m", "fassd_net_l2", *PLAIN)
    assert "the network takes three colours, the data's pictures have 5 bands" in error
    succeed("compare", "--data", field, "-i", 0, "-o", field / "p.png", "-m", weights, *PLAIN)


def test_a_network_of_colours_is_not_scored_on_bands(field):
    dataset = SegmentationDataset(load_card(field), "val")
    assert dataset[0].image.shape == (96, 128, 5) and dataset.card.preprocessing == OWN
    message = "the network takes three colours, the data's pictures have 5 bands"
    with pytest.raises(ValueError, match=message):
        evaluate(fassd.create_model("fassd_net_l2", 2), dataset)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0", "bands.count must be .* 1, got 0"),
        ("[5]", r"bands must be a mapping, got \[5\]"),
        ("{mean: [0.5]}", "bands.count is missing"),
        ("{count: 2, mean: [0.5]}", "mean and std must be equally many"),
        ("{count: 2, std: 0.5}", "bands.std must be a valid list"),
        ("{count: 2, std: [0.5, 0]}", "std above 0"),
        ("{count: 2, mean: [0.5, x]}", r"bands.mean\[1\] must be a valid number"),
        ("{count: 2, means: 1}", "bands: unknown key 'means'; accepted are count, mean, std"),
    ],
)
def test_bands_of_a_card_are_checked(field, value, message):
    text = re.sub("^bands: .*$", f"bands: {value}", CARD, flags=re.M)
    (field / "card.yaml").write_text(text)
    with pytest.raises(CardError, match=message):
        load_card(field)


def test_a_card_may_tell_their_number_alone(field):
    (field / "card.yaml").write_text(re.sub("^bands: .*$", "bands: 5", CARD, flags=re.M))
    assert load_card(field).preprocessing == Preprocessing.of_bands(5)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize("size", [(20, 30), (90, 110)])
def test_bands_are_augmented_as_colours_are(count, size):
    """Each band as it would be alone, in three channels."""
    image = np.random.default_rng(0).integers(0, 256, (*size, count), np.uint8)
    labels = np.zeros(size, np.uint8)
    settings = {"crop": (40, 50), "gamma": 0.3, "blur": 1.0, "rotate": True}
    padding = tuple(range(10, 10 + count))
    for seed in range(6):
        own, mask = TrainTransform(**settings, padding=padding)(
            image, labels, np.random.default_rng(seed)
        )
        assert own.shape == (40, 50, count)
        for band in range(count):
            grey = np.repeat(image[..., band : band + 1], 3, 2)
            transform = TrainTransform(**settings, padding=(padding[band],) * 3)
            expected, same = transform(grey, labels, np.random.default_rng(seed))
            np.testing.assert_array_equal(mask, same)
            difference = own[..., band].astype(int) - expected[..., 0]
            assert abs(difference).max() <= 1
    with pytest.raises(ValueError, match=rf"jitter works on three colours, got {count} bands"):
        TrainTransform(**settings, padding=padding, jitter=0.1)
