"""Weights by name: the project's own, in the package, and the authors', downloaded.

`shipped` weights are trained on generated street scenes; those called ``streets`` on photographs of
CamVid as well (``fassd/weights/README.md`` is their model card). `fetch` downloads the files of
FASSD-Net's authors once, verifies them and keeps them in a cache folder; they were published
without a licence, and this project neither contains them nor gives a licence for them.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from fassd.models.replacing import replacing

AUTHORS_URL = "https://raw.githubusercontent.com/GibranBenitez/FASSD-Net/master/weights/"

GIT_BLOBS = {
    "FASSD-Net-Cityscapes.pkl": "4cd3fc31b59b90db0bceb762ece6f057ca3cb4d0",
    "FASSD-Net-L1-Cityscapes.pkl": "219d67465675301fb4d69b0d80eb66618bb6d6f3",
    "FASSD-Net-L2-Cityscapes.pkl": "18fb66d3f1cfff2b7a6395f31dca6d001b28a9ab",
    "imagenet_weights.pth": "59ad749fde704f83988acd0a32b849e20778b9bf",
}
"""The published files and their git blob hashes (``git hash-object``)."""

SHIPPED = ("streets", "synthetic")
"""Names of the weights in ``fassd/weights``; the first is the default of the commands."""

SHIPPED_NETWORKS = ("fassd_net", "fassd_net_l2")
"""Networks that have shipped weights; 19 classes, alpha 2."""

CHUNK_BYTES = 1 << 16
TIMEOUT_SECONDS = 30.0


class DownloadError(OSError):
    """A published file could not be fetched, or is not the right one."""


def shipped(name: str, weights: str) -> Path:
    """Path in the package of a network's weights, one of `SHIPPED`."""
    return Path(__file__).parents[1] / "weights" / f"{name}-{weights}.safetensors"


def cache_folder() -> Path:
    """``$FASSD_CACHE``, else ``fassd`` in the user's cache folder.

    On Linux that is ``$XDG_CACHE_HOME``, else ``~/.cache``.
    """
    if os.environ.get("FASSD_CACHE"):
        return Path(os.environ["FASSD_CACHE"]).expanduser()
    # Imported here, as below, so that the networks can be used where only PyTorch is installed.
    import platformdirs

    return platformdirs.user_cache_path("fassd", appauthor=False)


def git_blob_hash(path: Path) -> str:
    """The result of ``git hash-object``: SHA-1 of ``blob <size>``, a zero byte and the content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(filename: str) -> Path:
    """Return the path of a verified copy of a published file, downloading it if need be.

    A copy in `cache_folder` with the right git blob hash is used as it is, a wrong one is replaced.
    The file gets its name only when it is complete and verified, so that two processes may fetch it
    at the same time. ``$FASSD_WEIGHTS_URL`` names a mirror of the authors' folder.

    Args:
        filename: a key of `GIT_BLOBS`.

    Raises:
        DownloadError: the file could not be fetched, was cut short, or is not the published one.
            The message gives the URL, and the path at which to put the file by hand.
        ValueError: `filename` is unknown.
    """
    if filename not in GIT_BLOBS:
        raise ValueError(f"filename must be one of {', '.join(GIT_BLOBS)}, got {filename!r}")
    expected = GIT_BLOBS[filename]
    target = cache_folder() / filename
    if target.is_file() and git_blob_hash(target) == expected:
        return target

    base = os.environ.get("FASSD_WEIGHTS_URL") or AUTHORS_URL
    url = base.rstrip("/") + "/" + urllib.parse.quote(filename)
    try:
        _download(url, target, expected)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(
            f"could not download {url}: {error or type(error).__name__}\n"
            f"To go on without the network, put the file at {target}"
        ) from error
    return target


def _download(url: str, target: Path, expected: str) -> None:
    """Stream the body of `url` into a file, with a progress bar on stderr."""
    # Imported here, so that the networks can be used where only PyTorch is installed.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        replacing(target) as file,
        urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        length = response.headers.get("Content-Length")
        size = int(length) if length else None
        task = progress.add_task(urllib.parse.unquote(url.rsplit("/", 1)[1]), total=size)
        received = 0
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            received += len(chunk)
            progress.update(task, completed=received)
        file.flush()
        if size is not None and received != size:
            raise DownloadError(f"{received} of {size} bytes came")
        actual = git_blob_hash(Path(file.name))
        if actual != expected:
            raise DownloadError(f"its git blob hash is {actual}, expected {expected}")
