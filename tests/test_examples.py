"""The examples run; what they say of the commands is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import typer

from fassd.cli import app
from fassd.io.images import read_image

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_camera_labels_a_clip(tmp_path: Path) -> None:
    clip, last = tmp_path / "clip.avi", tmp_path / "last.png"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for level in (40, 90, 140):
        writer.write(np.full((64, 96, 3), level, np.uint8))
    writer.release()
    command = [sys.executable, str(EXAMPLES / "camera.py"), str(clip), "--save", str(last)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert len(re.findall(r"frames/s  ahead: \w", done.stdout)) == 3
    assert read_image(last).shape == (64, 96, 3)


def test_proxies_know_the_server() -> None:
    """Uploads as large as the server takes, and answers as long as it may take."""
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    defaults = {each.name: each.default for each in serve.params}
    mebibytes, seconds = defaults["max_bytes"] / 1024**2, defaults["timeout"]
    nginx, caddy = ((EXAMPLES / "serve" / name).read_text() for name in ("nginx.conf", "Caddyfile"))
    for text in (nginx, caddy):
        (most,) = re.findall(r"max_(?:body_)?size (\d+)M?i?", text, re.I)
        (patience,) = re.findall(r"(?:read|header)_timeout (\d+)s", text)
        assert float(most) == mebibytes and float(patience) > seconds
        assert f"127.0.0.1:{defaults['port']}" in text and "/metrics" in text
