"""`POST /v1/segment`: labels as `Segmenter` gives them, in both formats, with every choice."""

import io
import itertools
import re

import numpy as np
import pytest
import torch
from PIL import Image
from serve.apps import MODEL, PLANTS, encoded, post, serving, street

from fassd.inference.segmenter import Segmenter
from fassd.io.palette import CITYSCAPES


def labels_of(answer):
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == "image/png":
        with Image.open(io.BytesIO(answer.content)) as image:
            assert image.mode == "L"
            return np.asarray(image)
    body = answer.json()
    values, lengths = np.array(body["counts"]).T
    return np.repeat(values, lengths).reshape(body["height"], body["width"])


@pytest.mark.parametrize("form", ["png", "rle"])
@pytest.mark.parametrize(
    ("backend", "dtype"), [("reference", "float32"), ("auto", "float32"), ("auto", "bfloat16")]
)
def test_labels_are_the_segmenters(client, form, backend, dtype):
    picture = street()
    segmenter = Segmenter(
        MODEL, weights="streets", backend=backend, dtype=getattr(torch, dtype), device="cpu"
    )
    expected = segmenter.predict(picture)
    assert len(np.unique(expected)) > 3
    answer = post(client, encoded(picture), format=form, backend=backend, dtype=dtype)
    np.testing.assert_array_equal(labels_of(answer), expected)


def test_run_lengths_tell_classes_and_shares(client):
    answer = post(client, encoded(street()), format="rle", model=MODEL)
    labels = labels_of(answer)
    body = answer.json()
    assert [entry["id"] for entry in body["classes"]] == np.unique(labels).tolist()
    for entry in body["classes"]:
        assert entry["name"] == CITYSCAPES[entry["id"]].name
        assert tuple(entry["color"]) == CITYSCAPES[entry["id"]].color
        assert entry["share"] == pytest.approx((labels == entry["id"]).mean())
    values = [value for value, _ in body["counts"]]
    assert all(one != other for one, other in itertools.pairwise(values))
    timing = body["timing_ms"]
    assert 0 < timing["network"] < timing["total"] and body["batch"] == 1


def test_each_network_tells_its_own_classes():
    with serving(others=[PLANTS]) as (client, _):
        own, others = (info["classes"] for info in client.get("/v1/models").json()["models"])
        assert own is None
        assert others == [entry.model_dump(mode="json") for entry in PLANTS.classes]
        known = {MODEL: CITYSCAPES[0], "plants": ("plant 0", [0, 200, 3])}
        for model, (name, color) in known.items():
            body = post(client, encoded(street()), format="rle", model=model).json()
            entry = body["classes"][0]
            assert (entry["id"], entry["name"], entry["color"]) == (0, name, list(color))


def test_every_step_is_timed(client):
    timing = post(client, encoded(street())).headers["server-timing"]
    times = dict(re.findall(r"(\w+);dur=([\d.]+)", timing))
    assert list(times) == ["read", "decode", "queue", "network", "encode", "total"]
    parts = sum(float(value) for name, value in times.items() if name != "total")
    assert 0 < parts <= float(times["total"])


def test_a_body_may_be_the_picture(client):
    data = encoded(street(), "JPEG")
    raw = client.post("/v1/segment", content=data, headers={"Content-Type": "image/jpeg"})
    np.testing.assert_array_equal(labels_of(raw), labels_of(post(client, data)))


def test_size_is_the_networks_and_the_labels(client):
    picture = street()
    small = np.asarray(Image.fromarray(picture).resize((112, 72), Image.Resampling.BILINEAR))
    expected = Segmenter(MODEL, weights="streets", device="cpu").predict(small)
    answer = post(client, encoded(picture), size="72x112")
    np.testing.assert_array_equal(labels_of(answer), expected)


def test_pictures_of_every_kind(client):
    upright = street(96, 128)
    expected = labels_of(post(client, encoded(upright)))
    image = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    turned = encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    np.testing.assert_array_equal(labels_of(post(client, turned)), expected)

    deep = encoded(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    grey = encoded(image.convert("L"))
    np.testing.assert_array_equal(labels_of(post(client, deep)), labels_of(post(client, grey)))

    with serving(range="0:4095") as (ranged, _):
        assert ranged.get("/v1/models").json()["range"] == "0:4095"
        twelve = encoded(np.asarray(image.convert("L")).astype(np.uint16) << 4)
        np.testing.assert_array_equal(
            labels_of(post(ranged, twelve)), labels_of(post(client, grey))
        )

    frames = [image.convert("P"), Image.new("P", image.size)]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    still = encoded(frames[0], "GIF")
    np.testing.assert_array_equal(labels_of(post(client, moving)), labels_of(post(client, still)))


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"model": "resnet"}, "model must be 'fassd_net_l2', got 'resnet'"),
        ({"model": "/etc/passwd"}, "model must be"),
        ({"backend": "magic"}, "backend must be 'auto' or 'reference'"),
        ({"dtype": "float8"}, "dtype must be 'float32' or 'bfloat16'"),
        ({"format": "bmp"}, "format must be 'png' or 'rle'"),
        ({"size": "0x5"}, "size must match pattern"),
        ({"size": "4000x4000"}, "size: at most 20,480 pixels, got 4000x4000"),
        ({"size": "1x200"}, "the input must be at least"),
        ({"weights": "/etc/passwd"}, "weights is not known; accepted are model, "),
    ],
)
def test_choices_that_are_not_offered(client, query, told):
    answer = post(client, encoded(street()), **query)
    assert answer.status_code == 422
    assert told in answer.json()["detail"] and "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    "query",
    [
        "&".join(f"p{index}" for index in range(5000)),
        f"{30_000 * 'x'}=1",
        f"model={30_000 * 'x'}",
        f"size={30_000 * '1'}x1",
    ],
)
def test_an_answer_to_large_choices_is_short(client, query):
    answer = client.post(f"/v1/segment?{query}", files={"image": encoded(street())})
    assert answer.status_code == 422 and len(answer.text) < 1000


def test_an_answer_to_a_large_content_type_is_short(client):
    answer = client.post("/v1/segment", content=b"x", headers={"Content-Type": 30_000 * "x"})
    assert answer.status_code == 415 and len(answer.text) < 1000


def test_a_network_that_cannot_be_loaded_is_told_without_its_reason():
    def fail(choice):
        raise ValueError("/secret/place: no such file")

    with serving(load=fail) as (client, _):
        answer = post(client, encoded(street()))
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        "fassd_net_l2 cannot run here with backend=auto and dtype=float32; choose others"
    )


def test_no_traceback_reaches_a_client(caplog):
    class Broken:
        def predict(self, picture):
            raise RuntimeError("secret")

    with serving(load=lambda choice: Broken()) as (client, engine):
        answer = post(client, encoded(street()))
        assert answer.status_code == 500 and answer.json() == {"detail": "internal error"}
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert engine.healthy and client.get("/healthz").status_code == 200
    assert "secret" in caplog.text  # for the operator


def test_what_can_be_chosen(client):
    catalog = client.get("/v1/models").json()
    assert [model["name"] for model in catalog["models"]] == [MODEL]
    assert [entry["name"] for entry in catalog["classes"]] == [info.name for info in CITYSCAPES]
    assert catalog["limits"]["max_pixels"] == 128 * 160
    for method, path in [("get", "/v1/segment"), ("post", "/v1/models"), ("get", "/etc/passwd")]:
        answer = getattr(client, method)(path)
        assert answer.status_code in (404, 405) and isinstance(answer.json()["detail"], str)


def test_examples_are_streets(client):
    answer = client.get("/v1/example", params={"scene": 3})
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.format == "JPEG" and image.size == (1024, 512)
    assert answer.content != client.get("/v1/example", params={"scene": 4}).content
    assert client.get("/v1/example", params={"scene": 99}).status_code == 422


def test_metrics_count(client):
    def value(name, text):
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
        return float(found[1]) if found else 0.0

    done = 'fassd_requests_total{route="/v1/segment",status="200"}'
    network = 'fassd_network_seconds_count{backend="auto",dtype="float32",model="fassd_net_l2"}'
    names = [done, network, "fassd_batch_pictures_sum", "fassd_queue_seconds_count"]
    before = client.get("/metrics").text
    for _ in range(3):
        post(client, encoded(street()))
    after = client.get("/metrics").text
    for name in names:
        assert value(name, after) - value(name, before) == 3, name
    assert value("fassd_queue_depth", after) == 0
    assert value("fassd_networks_loaded", after) >= 1


@pytest.mark.parametrize("measure", ["probability", "margin", "entropy"])
def test_confidence(client, measure):
    picture = street()
    segmenter = Segmenter(MODEL, weights="streets", device="cpu")
    labels, certainty = segmenter.predict(picture, confidence=measure)
    answer = post(client, encoded(picture), confidence=measure)
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.mode == "RGB"
        found = np.asarray(image)
    np.testing.assert_array_equal(found[..., 0], labels)
    np.testing.assert_array_equal(found[..., 1], certainty)
    assert not found[..., 2].any()
    body = post(client, encoded(picture), confidence=measure, format="rle").json()
    for entry in body["classes"]:
        mean = certainty[labels == entry["id"]].mean() / 255
        assert entry["confidence"] == pytest.approx(mean, abs=1e-6)
    assert post(client, encoded(picture), format="rle").json()["classes"][0]["confidence"] is None
    assert post(client, encoded(picture), confidence="sure").status_code == 422
