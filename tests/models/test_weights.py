"""Downloading, against a server on this machine that can be told to misbehave."""

import hashlib
import http.server
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fassd.models import DownloadError, create_model, weights


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; a body may be cut short of the length that was announced."""

    def do_GET(self):
        self.server.requests.append(self.path)
        name = self.path.lstrip("/")
        if name not in self.server.files:
            self.send_error(404)
            return
        body = self.server.files[name]
        self.send_response(200)
        if self.server.announce_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut_at])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.requests = {}, []
        server.cut_at, server.announce_length = None, True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("FASSD_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("FASSD_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield server
        server.shutdown()
        thread.join()


CONTENT = bytes(range(250)) * 1200


def blob_hash(content):
    return hashlib.sha1(f"blob {len(content)}".encode() + b"\0" + content).hexdigest()


@pytest.fixture
def published(server, monkeypatch):
    """A file of 300,000 bytes that the server has and the table knows."""
    server.files["FASSD-Net-Cityscapes.pkl"] = CONTENT
    monkeypatch.setitem(weights.GIT_BLOBS, "FASSD-Net-Cityscapes.pkl", blob_hash(CONTENT))
    return CONTENT


def left_over(tmp_path):
    folder = tmp_path / "cache"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_git_blob_hash(tmp_path):
    (tmp_path / "hello").write_bytes(b"hello world\n")
    # printf 'hello world\n' | git hash-object --stdin
    expected = "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"
    assert weights.git_blob_hash(tmp_path / "hello") == expected


def test_downloaded_once(server, published, tmp_path):
    path = weights.fetch("FASSD-Net-Cityscapes.pkl")
    assert path == tmp_path / "cache" / "FASSD-Net-Cityscapes.pkl"
    assert path.read_bytes() == published
    assert weights.fetch("FASSD-Net-Cityscapes.pkl") == path
    assert server.requests == ["/FASSD-Net-Cityscapes.pkl"]
    assert left_over(tmp_path) == ["FASSD-Net-Cityscapes.pkl"]


def test_damaged_copy_in_the_cache_is_replaced(server, published, tmp_path):
    path = weights.fetch("FASSD-Net-Cityscapes.pkl")
    path.write_bytes(b"something else")
    assert weights.fetch("FASSD-Net-Cityscapes.pkl").read_bytes() == published
    assert len(server.requests) == 2


def test_file_put_there_by_hand_needs_no_network(published, tmp_path, monkeypatch):
    monkeypatch.setenv("FASSD_WEIGHTS_URL", "http://127.0.0.1:9/")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "FASSD-Net-Cityscapes.pkl").write_bytes(published)
    assert weights.fetch("FASSD-Net-Cityscapes.pkl").read_bytes() == published


@pytest.mark.parametrize("old", [None, b"an older file"])
@pytest.mark.parametrize(
    ("cut_at", "announced", "flip", "message"),
    [
        (0, True, 0, "0 of 300000 bytes came"),
        (100_000, True, 0, "100000 of 300000 bytes came"),
        (100_000, False, 0, "its git blob hash is"),
        (None, True, 1, f"expected {blob_hash(CONTENT)}"),
    ],
)
def test_a_body_that_is_cut_or_corrupted_replaces_nothing(
    server, published, tmp_path, cut_at, announced, flip, message, old
):
    server.cut_at, server.announce_length = cut_at, announced
    name = "FASSD-Net-Cityscapes.pkl"
    server.files[name] = bytes([published[0] ^ flip]) + published[1:]
    if old is not None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / name).write_bytes(old)
    with pytest.raises(DownloadError, match=message):
        weights.fetch(name)
    assert left_over(tmp_path) == ([] if old is None else [name])
    assert old is None or (tmp_path / "cache" / name).read_bytes() == old


def test_body_of_unknown_length(server, published):
    server.announce_length = False
    assert weights.fetch("FASSD-Net-Cityscapes.pkl").read_bytes() == published


@pytest.mark.parametrize("reason", ["missing", "offline"])
def test_error_tells_url_and_where_to_put_the_file(server, tmp_path, monkeypatch, reason):
    if reason == "offline":
        monkeypatch.setenv("FASSD_WEIGHTS_URL", "http://127.0.0.1:9")
    with pytest.raises(DownloadError) as caught:
        weights.fetch("imagenet_weights.pth")
    message = str(caught.value)
    assert "/imagenet_weights.pth" in message.splitlines()[0]
    assert "http://127.0.0.1:" in message
    assert str(tmp_path / "cache" / "imagenet_weights.pth") in message.splitlines()[1]
    assert left_over(tmp_path) == []


def test_many_at_once(server, published, tmp_path):
    with ThreadPoolExecutor(6) as pool:
        read = pool.map(lambda _: weights.fetch("FASSD-Net-Cityscapes.pkl").read_bytes(), range(6))
        assert list(read) == [published] * 6
    assert left_over(tmp_path) == ["FASSD-Net-Cityscapes.pkl"]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FASSD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert weights.cache_folder() == tmp_path / ".cache" / "fassd"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights.cache_folder() == tmp_path / "xdg" / "fassd"
    monkeypatch.setenv("FASSD_CACHE", "~/mine")
    assert weights.cache_folder() == tmp_path / "mine"


def test_the_published_files():
    assert weights.GIT_BLOBS == {
        "FASSD-Net-Cityscapes.pkl": "4cd3fc31b59b90db0bceb762ece6f057ca3cb4d0",
        "FASSD-Net-L1-Cityscapes.pkl": "219d67465675301fb4d69b0d80eb66618bb6d6f3",
        "FASSD-Net-L2-Cityscapes.pkl": "18fb66d3f1cfff2b7a6395f31dca6d001b28a9ab",
        "imagenet_weights.pth": "59ad749fde704f83988acd0a32b849e20778b9bf",
    }
    with pytest.raises(ValueError, match=r"filename must be one of FASSD-Net-Cityscapes\.pkl"):
        weights.fetch("other.pkl")


def publish(server, monkeypatch, tmp_path, filename, content):
    torch.save(content, tmp_path / "file")
    server.files[filename] = (tmp_path / "file").read_bytes()
    monkeypatch.setitem(weights.GIT_BLOBS, filename, blob_hash(server.files[filename]))


@pytest.mark.parametrize(
    ("name", "filename"),
    [
        ("fassd_net", "FASSD-Net-Cityscapes.pkl"),
        ("fassd_net_l1", "FASSD-Net-L1-Cityscapes.pkl"),
        ("fassd_net_l2", "FASSD-Net-L2-Cityscapes.pkl"),
    ],
)
def test_cityscapes_weights(server, monkeypatch, tmp_path, golden, name, filename):
    trained = golden.fill(create_model(name))
    content = {"model_state": trained.state_dict()}
    publish(server, monkeypatch, tmp_path, filename, content)
    model = create_model(name, weights="cityscapes")
    assert torch.equal(model.finalConv.weight, trained.finalConv.weight)
    assert server.requests == [f"/{filename}"]


def test_imagenet_weights(server, monkeypatch, tmp_path, golden):
    trained = golden.fill(create_model("baseline"))
    publish(server, monkeypatch, tmp_path, "imagenet_weights.pth", trained.base.state_dict())
    model = create_model("fassd_net", num_classes=7, alpha=3, weights="imagenet")
    assert torch.equal(model.base[13].layers[0].conv.weight, trained.base[13].layers[0].conv.weight)


def test_weights_from_a_path(tmp_path, golden):
    trained = golden.fill(create_model("fassd_net_l2", 4))
    torch.save(trained.state_dict(), tmp_path / "mine.pth")
    model = create_model("fassd_net_l2", 4, weights=tmp_path / "mine.pth")
    assert torch.equal(model.finalConv.bias, trained.finalConv.bias)


@pytest.mark.parametrize("which", ["cityscapes", "synthetic", "streets"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("baseline",), "none were published for 'baseline', only for fassd_net, "),
        (("fassd_net", 11), "has 19 classes and alpha 2, not num_classes=11"),
        (("fassd_net", 19, 4), "alpha=4"),
    ],
)
def test_weights_that_were_not_published(server, which, arguments, message):
    with pytest.raises(ValueError, match=f"'{which}'.*{message}"):
        create_model(*arguments, weights=which)
    assert server.requests == []
