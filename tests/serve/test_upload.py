"""Uploads that are refused: too large, too many pixels, no pictures, malformed."""

import io

import numpy as np
import pytest
import tifffile
from pictures import png
from PIL import Image
from serve.apps import MODEL, encoded, load, post, serving, street

import fassd
from fassd.inference.segmenter import Segmenter
from fassd.serve.schemas import ModelInfo
from fassd.serve.upload import RefusedError, decode


def test_a_bomb_is_refused_by_its_header(client):
    answer = post(client, png(100_000, 100_000, 8, bytes(100)))
    assert answer.status_code == 413 and "too many pixels" in answer.json()["detail"]
    answer = post(client, png(1000, 2000, 8, bytes(100)))
    assert answer.status_code == 413
    assert "too many pixels; the limit is 20,480" in answer.json()["detail"]


def test_a_picture_that_compresses_well_is_never_decoded(client, monkeypatch):
    bomb = encoded(Image.new("1", (9000, 9000)))
    assert len(bomb) < 100_000
    monkeypatch.setattr("fassd.io.images._read", lambda image: pytest.fail("decoded"))
    assert post(client, bomb).status_code == 413


def test_the_limit_of_pixels_is_exact():
    assert decode(encoded(np.zeros((10, 20, 3), np.uint8)), 200).shape == (10, 20, 3)
    with pytest.raises(RefusedError, match="too many pixels; the limit is 199") as caught:
        decode(encoded(np.zeros((10, 20, 3), np.uint8)), 199)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("data", "status", "told"),
    [
        (b"", 400, "empty"),
        (b"just some text", 415, "accepted: AVIF"),
        (encoded(street())[:900], 400, "damaged or truncated"),
        (encoded(street(), "JPEG")[:900], 400, "damaged or truncated"),
        (encoded(Image.new("I", (20, 20), 70_000), "TIFF"), 400, "must be 0 to 65535"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 415, "not a picture"),
    ],
)
def test_what_is_no_picture(client, data, status, told):
    answer = post(client, data)
    assert answer.status_code == status and told in answer.json()["detail"]


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tiff(array):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, planarconfig="contig", photometric="minisblack")
    return buffer.getvalue()


def test_pictures_of_bands():
    bands = np.random.default_rng(0).integers(0, 256, (70, 96, 5), np.uint8)
    segmenter = Segmenter(fassd.create_model("fassd_net_l2", in_channels=5), device="cpu")
    field = ModelInfo(name="field", title="Field", weights="random", bands=5)
    pairs = {MODEL: load, "field": lambda choice: segmenter}
    with serving(load=lambda c: pairs[c.model](c), others=[field]) as (client, _):
        assert [each["bands"] for each in client.get("/v1/models").json()["models"]] == [None, 5]
        right = segmenter.predict(bands)
        raw = {"headers": {"Content-Type": "image/x-npy"}}
        answers = [post(client, encode(bands), model="field") for encode in (npy, tiff)]
        address = "/v1/segment?model=field"
        answers.append(client.post(address, content=npy(bands.astype(np.uint16) * 257), **raw))
        for answer in answers:
            assert answer.status_code == 200, answer.text
            labels = np.array(Image.open(io.BytesIO(answer.content)))
            np.testing.assert_array_equal(labels, right)
        small = post(client, npy(bands), model="field", size="64x64", confidence="margin")
        assert Image.open(io.BytesIO(small.content)).size == (64, 64)
        for data, status, told in (
            (encoded(street()), 400, "cannot be used: has 3 bands; the network takes 5"),
            (npy(bands[..., :4]), 400, "has 4 bands; the network takes 5"),
            (npy(bands)[:9000], 400, "is truncated: 8,872 of 33,600 bytes"),
            (npy(np.full((9, 9, 5), np.nan)), 400, "got NaN at row 0, column 0"),
            (npy(bands)[:50], 400, "the picture is damaged or truncated"),
            (tiff(bands)[:2000], 400, "the picture is damaged or truncated"),
            (npy(np.zeros((150, 150, 5), bool)), 413, "the limit is 20,480"),
            (tiff(np.zeros((150, 150, 5), np.uint8)), 413, "the limit is 20,480"),
            (b"just some text", 415, "accepted: AVIF"),
        ):
            answer = post(client, data, model="field")
            assert answer.status_code == status and told in answer.json()["detail"], answer.text
        assert post(client, npy(bands)).status_code == 415  # of a network of colours


def test_bytes_are_counted(client):
    exact = encoded(street()).ljust(200_000, b"\0")
    assert post(client, exact).status_code == 200
    answer = post(client, exact + b"\0")
    assert answer.status_code == 413 and "limit of 200,000 bytes" in answer.json()["detail"]
    raw = {"Content-Type": "image/png"}
    assert client.post("/v1/segment", content=exact, headers=raw).status_code == 200
    pieces = (exact[i : i + 50_000] for i in range(0, 200_000, 50_000))  # no Content-Length
    assert client.post("/v1/segment", content=pieces, headers=raw).status_code == 200

    # The test client gathers a body before it sends it; the real socket is in test_server.py.
    chunks = iter([exact, b"\0"])
    assert client.post("/v1/segment", content=chunks, headers=raw).status_code == 413


def test_nothing_goes_to_the_disk(client, monkeypatch):
    def rolled(self):
        raise AssertionError("a file was written")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", rolled)
    big = encoded(street()).ljust(200_000, b"\0")
    assert post(client, big).status_code == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"files": {"picture": b"x"}}, 400),
        ({"files": [("image", b"x"), ("image", b"y")]}, 400),
        ({"files": {"image": b"x"}, "data": {"model": "fassd_net"}}, 400),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400),
        (
            {"content": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}},
            400,
        ),
        ({"content": b"{}", "headers": {"Content-Type": "application/json"}}, 415),
        ({"content": b"image=x"}, 415),
        ({}, 415),
    ],
)
def test_malformed_requests(client, request_, status):
    answer = client.post("/v1/segment", **request_)
    assert answer.status_code == status
    assert "send multipart/form-data with one file named image" in answer.json()["detail"]
