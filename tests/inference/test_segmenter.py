import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

import fassd
import fassd_kernels
from fassd.data import normalize
from fassd.inference.segmenter import Segmenter, accelerated
from fassd.io.images import ImageError
from fassd.models.device import pick_device


class Brightest(nn.Module):
    """Scores of a pixel: how blue, green and red it is; refuses pictures below 4x4."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:3, :, 0, 0] = torch.eye(3)

    def forward(self, x):
        if min(x.shape[2:]) < 4:
            raise ValueError(f"the input must be at least 4x4, got {tuple(x.shape[2:])}")
        self.seen = x
        return self.conv(x)


@pytest.fixture
def picture():
    """Left half red (class 2), right half blue (class 0)."""
    image = np.zeros((6, 8, 3), np.uint8)
    image[:, :4, 0] = image[:, 4:, 2] = 250
    return image


def test_labels_of_every_kind_of_picture(picture, tmp_path):
    segmenter = Segmenter(Brightest(), backend="reference")
    expected = np.repeat([[2] * 4 + [0] * 4], 6, 0)
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    rgba = np.dstack([picture, np.full((6, 8), 255, np.uint8)])
    inputs = [
        path,
        str(path),
        Image.open(path),
        picture,
        picture.astype(np.uint16) * 257,
        picture / np.float32(255),
        rgba,
        torch.from_numpy(picture),
        torch.from_numpy(picture).permute(2, 0, 1),
        torch.from_numpy(picture).permute(2, 0, 1).bfloat16() / 256,
        picture[:, ::-1][:, ::-1],
    ]
    for image in inputs:
        labels = segmenter.predict(image)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)
    listed = segmenter.predict([picture, Image.fromarray(picture[:5])])
    assert [labels.shape for labels in listed] == [(6, 8), (5, 8)]
    assert segmenter.predict([]) == []


class Returning(Brightest):
    """A network whose logits come in some other shape than alone."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(super().forward(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: {"out": logits, "aux": -logits},  # torchvision
        lambda logits: {"aux": -logits, "logits": logits},
        lambda logits: SemanticSegmenterOutput(logits=logits),  # transformers
        lambda logits: {"prediction": logits, "loss": logits.sum()},
        lambda logits: types.SimpleNamespace(logits=logits),
        lambda logits: (logits, -logits),
        lambda logits: [logits],
    ],
)
def test_logits_are_found_in_what_a_network_returns(picture, wrap):
    segmenter = Segmenter(Returning(wrap), backend="reference")
    plain = Segmenter(Brightest(), backend="reference")
    np.testing.assert_array_equal(segmenter.predict(picture), plain.predict(picture))
    assert torch.equal(segmenter.logits(picture), plain.logits(picture))
    camera = fassd_kernels.Runner(Returning(wrap), size=(6, 8))
    np.testing.assert_array_equal(camera(picture), plain.predict(picture))


@pytest.mark.parametrize(
    ("wrap", "came"),
    [
        (lambda logits: {"a": logits, "b": logits}, "a dict with the keys a, b"),
        (lambda logits: logits.argmax(1), r"a tensor of shape \(1, 6, 8\)"),
        (lambda logits: (), "a tuple"),
        (lambda logits: None, "a NoneType"),
    ],
)
def test_a_network_that_returns_no_logits_is_told(picture, wrap, came):
    with pytest.raises(TypeError, match=f"must return logits .* it returned {came}"):
        Segmenter(Returning(wrap), backend="reference").predict(picture)


def test_threads_sleep_where_a_segmenter_brings_pytorch():
    program = "import os; from fassd import Segmenter; print(os.environ['OMP_WAIT_POLICY'])"
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "PASSIVE", done.stderr


def test_bytes_of_a_file(picture, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    content = path.read_bytes()
    segmenter = Segmenter(Brightest(), backend="reference", max_pixels=48)
    expected = segmenter.predict(path)
    for same in (content, bytearray(content), memoryview(content)):
        np.testing.assert_array_equal(segmenter.predict(same), expected)
    with pytest.raises(ImageError, match=r"^picture 1: is damaged or truncated"):
        segmenter.predict([content, content[:44]])
    with pytest.raises(ImageError, match=r"^is empty$"):
        segmenter.predict(b"")
    with pytest.raises(ImageError, match=r"^is not a picture in a format that is read here"):
        segmenter.predict(b"%PDF-1.7")
    with pytest.raises(ImageError, match=r"^has 6x8 pixels; more than"):
        Segmenter(Brightest(), max_pixels=47).predict(content)


@pytest.mark.parametrize("alpha", [False, True])
def test_bgr_is_turned_around(picture, alpha):
    """As OpenCV has colours; alpha stays the last."""
    segmenter = Segmenter(Brightest(), backend="reference")
    expected = segmenter.predict(picture)
    turned = picture[..., ::-1]
    if alpha:
        turned = np.dstack([turned, np.full((6, 8), 255, np.uint8)])
    for image in (turned, torch.from_numpy(turned.copy()).permute(2, 0, 1), turned / 255):
        np.testing.assert_array_equal(segmenter.predict(image, order="BGR"), expected)
        assert (segmenter.predict(image) != expected).all()
    batch = np.stack([turned, turned])
    np.testing.assert_array_equal(segmenter.predict(batch, order="BGR"), [expected] * 2)
    np.testing.assert_array_equal(segmenter.predict([turned], order="BGR"), [expected])
    assert torch.equal(segmenter.logits(turned, order="BGR"), segmenter.logits(picture))
    grey = picture[..., 0]
    np.testing.assert_array_equal(segmenter.predict(grey, order="BGR"), segmenter.predict(grey))


def test_an_order_that_a_picture_cannot_have(picture, tmp_path):
    segmenter = Segmenter(Brightest(), backend="reference")
    with pytest.raises(ValueError, match="order must be one of RGB, BGR, got 'GBR'"):
        segmenter.predict(picture, order="GBR")
    Image.fromarray(picture).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), content, Image.fromarray(picture)):
        with pytest.raises(ImageError, match=r"order 'BGR' is for arrays and tensors; a \w+ has"):
            segmenter.predict(image, order="BGR")
        with pytest.raises(ValueError, match="order must be one of RGB, BGR, got 'x'"):
            segmenter.predict(image, order="x")


class Counted(Brightest):
    """Refuses nothing, and counts the pictures of each call."""

    def forward(self, x):
        self.__dict__.setdefault("calls", []).append(len(x))
        return super().forward(x)


def test_a_batch_goes_through_the_network_at_once(picture):
    pictures = [picture, picture[:, ::-1], picture[::-1]]
    batch = np.stack(pictures)
    tensor = torch.from_numpy(batch)
    for size in (None, (12, 4)):
        segmenter = Segmenter(Counted(), backend="reference", size=size)
        expected = np.stack(segmenter.predict(pictures))
        segmenter.model.calls.clear()
        images = [batch, tensor, tensor.permute(0, 3, 1, 2), tensor.permute(0, 3, 1, 2) / 255]
        for image in images:
            labels = segmenter.predict(image)
            assert labels.dtype == np.uint8
            np.testing.assert_array_equal(labels, expected)
        assert segmenter.model.calls == [3] * len(images)
        assert segmenter.predict(tensor[:0]).shape == (0, 6, 8)
        grey = tensor[..., :1].permute(0, 3, 1, 2)
        assert segmenter.predict(grey).shape == (3, 6, 8)
    views = Segmenter(Counted(), backend="reference", flip=True)
    np.testing.assert_array_equal(views.predict(batch), np.stack(views.predict(pictures)))
    with pytest.raises(ImageError, match=r"picture 0: an array must be \(H, W\)"):
        segmenter.predict(np.zeros((2, 6, 8, 5), np.uint8))
    with pytest.raises(ValueError, match="at least 4x4"):
        Segmenter(Brightest()).predict(np.zeros((2, 3, 8, 3), np.uint8))


def test_grey_pictures(picture):
    segmenter = Segmenter(Brightest(), backend="reference")
    for image in (picture[..., 0], Image.fromarray(picture[..., 0]), torch.zeros(5, 9)):
        assert segmenter.predict(image).shape == tuple(np.asarray(image).shape)


@pytest.mark.parametrize("size", [None, (6, 8), (12, 4)])
def test_size_resizes_the_picture_and_then_the_logits(picture, size):
    segmenter = Segmenter(Brightest(), backend="reference", size=size)
    logits = segmenter.logits(picture)
    height, width = size or (6, 8)
    seen = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    scores = Brightest()(torch.from_numpy(normalize(seen))[None])
    if size == (12, 4):
        scores = F.interpolate(scores, (6, 8), mode="bilinear", align_corners=True)
    assert segmenter.model.seen.shape == (1, 3, height, width) and logits.dtype == torch.float32
    torch.testing.assert_close(logits, scores[0], rtol=0, atol=0)
    np.testing.assert_array_equal(segmenter.predict(picture), scores[0].argmax(0).numpy())


@pytest.mark.parametrize(("classes", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_label_type_follows_the_class_count(picture, classes, dtype):
    assert Segmenter(Brightest(classes), backend="reference").predict(picture).dtype == dtype


@pytest.mark.parametrize("classes", [3, 19, 300])
def test_large_pictures_are_scored_by_bands_of_rows_with_the_same_labels(monkeypatch, classes):
    torch.manual_seed(0)
    network = nn.Conv2d(3, classes, 3, padding=1)
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    segmenter = Segmenter(network, backend="reference", size=(16, 20))
    at_once = segmenter.predict(image)
    np.testing.assert_array_equal(at_once, segmenter.logits(image).argmax(0))
    monkeypatch.setattr("fassd.inference.views.BAND", classes * 47 * 5)
    labels = segmenter.predict(image)
    np.testing.assert_array_equal(labels, at_once)
    assert labels.dtype == at_once.dtype and len(np.unique(labels)) > 2


def test_files_beyond_the_limit_of_pixels_are_refused(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert Segmenter(Brightest(), max_pixels=48).predict(tmp_path / "a.png").shape == (6, 8)
    with pytest.raises(ImageError, match=r"a\.png: has 6x8 pixels; more than .* max_pixels in Py"):
        Segmenter(Brightest(), max_pixels=47).predict(tmp_path / "a.png")


def test_the_model_given_stays_as_it_is(picture):
    model = Brightest().train()
    segmenter = Segmenter(model, backend="reference", dtype=torch.bfloat16)
    segmenter.predict(picture)
    assert model.training and model.conv.weight.dtype == torch.float32
    assert not segmenter.model.training
    assert segmenter.model.seen.dtype == torch.bfloat16
    assert segmenter.logits(picture).dtype == torch.float32


def test_errors_name_the_picture(picture, tmp_path):
    segmenter = Segmenter(Brightest(), backend="reference")
    path = tmp_path / "tiny.png"
    Image.fromarray(picture[:3]).save(path)
    with pytest.raises(
        ValueError, match=r"tiny\.png: the input must be at least 4x4, got \(3, 8\)"
    ):
        segmenter.predict(path)
    with pytest.raises(ValueError, match="picture 1: the input must be at least 4x4"):
        segmenter.predict([picture, picture[:3]])
    with pytest.raises(ImageError, match=r"picture 1: .*got set"):
        segmenter.predict([picture, {1}])
    with pytest.raises(ImageError, match="int64"):
        segmenter.predict(picture.astype(np.int64))
    with pytest.raises(ImageError, match="no such file"):
        segmenter.predict(tmp_path / "nothing.png")


SIZE_MESSAGE = r"size must be \(height, width\), both whole numbers of at least 1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({"size": size}, SIZE_MESSAGE)
            for size in ((0, 4), (4, 4, 4), 128, (1.5, 80), (64,), "ab")
        ),
        ({"dtype": torch.int16}, "dtype must be float32, float16, bfloat16, int8 or None, got"),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used here"),
        ({"device": "hpu"}, "device 'hpu' cannot be used here"),
        ({"device": "fpga"}, "device 'fpga' cannot be used here"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used here"),
    ],
)
def test_unsuitable_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Segmenter(Brightest(), backend="reference", **settings)


def test_pick_device():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type in ("cpu", "cuda")


# ---------------------------------------------------------------------------------------- backends


def test_other_backends_go_to_fassd_kernels(monkeypatch):
    asked = []

    def accelerate(model, dtype=None, backend="auto", calibration=None):
        asked.append((backend, dtype, model.training))
        return model

    monkeypatch.setitem(sys.modules, "fassd_kernels", types.SimpleNamespace(accelerate=accelerate))
    model = Brightest().train()
    result = accelerated(model, "cpu", torch.float16)
    assert asked == [("cpu", torch.float16, False)]
    assert result is not model and model.training


# ------------------------------------------------------------------------------------ real network


def test_real_network_by_name_and_module_and_weights(tmp_path, picture):
    image = np.kron(picture, np.ones((12, 12, 1), np.uint8))
    torch.manual_seed(3)
    model = fassd.create_model("fassd_net_l2", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    by_module = Segmenter(model, backend="reference").logits(image)
    by_name = Segmenter(
        "fassd_net_l2",
        weights=tmp_path / "weights.pth",
        num_classes=5,
        backend="reference",
        device="cpu",
    ).logits(image)
    other = fassd.create_model("fassd_net_l2", num_classes=5)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    loaded = Segmenter(other, weights=tmp_path / "weights.pth", backend="reference").logits(image)
    assert by_module.shape == (5, 72, 96)
    torch.testing.assert_close(by_name, by_module, rtol=0, atol=0)
    torch.testing.assert_close(loaded, by_module, rtol=0, atol=0)
    for key, value in other.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_accelerated_network_gives_the_references_logits(picture):
    image = np.kron(picture, np.ones((12, 12, 1), np.uint8))
    torch.manual_seed(0)
    model = fassd.create_model("fassd_net_l2")
    reference = Segmenter(model, backend="reference", device="cpu").logits(image)
    fused = Segmenter(model, device="cpu").logits(image)
    torch.testing.assert_close(fused, reference, rtol=1e-4, atol=1e-4)


def test_repr_tells_how_it_runs():
    text = repr(Segmenter(Brightest(), backend="reference", size=(64, 128)))
    assert text == (
        "Segmenter(Brightest, backend='reference', dtype=torch.float32, device=cpu, size=64x128)"
    )


@pytest.mark.parametrize("model", [None, [Brightest()]])
def test_a_model_that_is_none(model):
    with pytest.raises(
        TypeError, match=r"model must be a name, a file or a torch\.nn\.Module, got "
    ):
        Segmenter(model)


@pytest.mark.parametrize("weights", ["cityscapes", "no.pth", ""])
def test_absent_weights_of_a_module(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="published names are streets, synthetic"):
        Segmenter(Brightest(), weights=weights)
