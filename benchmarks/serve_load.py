"""`fassd serve` under load: requests a second, latencies, memory, and too many users at once.

    python -m benchmarks.serve_load --json benchmarks/results/amd-epyc-2-cores/serve.json

starts a server of its own on a free port, and runs locust against it in three parts: 8 users, whom
the queue can hold; 64, of whom some are answered 429; 8 again. Users send 512x1024 JPEGs, one after
the other without a pause, from the same cores. Needs ``pip install 'fassd-net[serve]' locust``.

Against a server that runs already, with locust's own page or without:

    locust -f benchmarks/serve_load.py --host http://127.0.0.1:8000
    locust -f benchmarks/serve_load.py --host http://127.0.0.1:8000 --headless -u 8 -t 2m
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from locust import FastHttpUser, task
from PIL import Image

SCENES = 4
HEIGHT, WIDTH = 512, 1024


def street(scene: int) -> bytes:
    """A generated street as JPEG."""
    from fassd.synth import render_street

    buffer = io.BytesIO()
    picture, _ = render_street(HEIGHT, WIDTH, 1, split="test", index=scene)
    Image.fromarray(picture).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


class Viewer(FastHttpUser):
    """A user that sends one picture after the other. A refusal, with 429 and a Retry-After, is not
    a failure but an outcome of its own, listed as ``429``; the user then tries again after a
    second."""

    pictures: list[bytes] = []  # noqa: RUF012 (locust makes users; the pictures are theirs together)

    def on_start(self) -> None:
        if not Viewer.pictures:
            Viewer.pictures.extend(street(scene) for scene in range(SCENES))
        self.sent = 0

    @task
    def segment(self) -> None:
        picture = Viewer.pictures[self.sent % SCENES]
        self.sent += 1
        headers = {"Content-Type": "image/jpeg"}
        with self.client.post(
            "/v1/segment", data=picture, headers=headers, catch_response=True
        ) as answer:
            if answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1:
                answer.request_meta["name"] = "429"
                answer.success()
            elif answer.status_code == 200:
                labels = Image.open(io.BytesIO(answer.content))
                if labels.size != (WIDTH, HEIGHT) or labels.mode != "L":
                    answer.failure(f"labels of {labels.size}, {labels.mode}")
        if answer.status_code == 429:
            time.sleep(1)


# ---------------------------------------------------------------------------------- a whole run


def resident(process: int) -> float:
    """Memory of a process in MiB (Linux)."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def locust(url: str, users: int, seconds: int) -> dict[str, Any]:
    """Let `users` users send pictures; outcomes, times in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--headless", "-u", str(users), "-r", str(users), "-t", f"{seconds}s"]
        options += ["--host", url, "--csv", f"{folder}/load", "--only-summary"]
        command = [sys.executable, "-m", "locust", "-f", __file__, *options]
        subprocess.run(command, capture_output=True, check=False)
        rows = list(csv.DictReader(Path(folder, "load_stats.csv").read_text().splitlines()))
    found: dict[str, Any] = {"users": users, "seconds": seconds}
    for row in rows:
        if row["Name"] == "Aggregated":
            continue
        found["turned_away" if row["Name"] == "429" else "labelled"] = {
            "requests": int(row["Request Count"]),
            "failures": int(row["Failure Count"]),
            "per_second": float(row["Requests/s"]),
            **{f"p{p}_ms": float(row[f"{p}%"]) for p in (50, 95, 99)},
        }
    return found


def watched(process: int, url: str, users: int, seconds: int) -> dict[str, Any]:
    """`locust`, with the memory of the server every ten seconds, from the start to the end."""
    memory = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0 if not memory else 10):
            memory.append(round(resident(process)))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        found = locust(url, users, seconds)
    finally:
        over.set()
        watcher.join()
    return {**found, "resident_mib": [*memory, round(resident(process))]}


def measure(model: str, seconds: int, server: list[str]) -> dict[str, Any]:
    """Start a server, load it, and stop it."""
    command = [sys.executable, "-m", "fassd", "serve", "-m", model, "--port", "0", *server]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            url = next(m[1] for line in lines if (m := re.search(r"(http://\S+)/", line)))
            # The server's log must be read, or the server would block.
            drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            locust(url, 4, 10)  # first pictures of a size take longer
            load = [
                {"part": name, **watched(process.pid, url, users, length)}
                for name, users, length in (
                    ("within", 8, seconds),
                    ("overload", 64, seconds // 4),
                    ("recovered", 8, seconds // 4),
                )
            ]
            with urllib.request.urlopen(f"{url}/metrics") as answer:
                metrics = answer.read().decode()
        finally:
            process.terminate()
            process.wait(20)
            drain.kill()
    sums = {
        name: float(re.search(rf"^fassd_batch_pictures_{name} (\S+)", metrics, re.M)[1])
        for name in ("sum", "count")
    }
    return {"load": load, "pictures_per_batch": round(sums["sum"] / sums["count"], 2)}


def main() -> None:
    # Not at the top: locust's users, who import this file by its path, do not need them.
    from benchmarks import write_json
    from fassd.bench.machine import environment
    from fassd.io.files import check_file

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="fassd_net_l2")
    parser.add_argument("--seconds", type=int, default=120, help="of the part within the limit")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("server", nargs="*", help="options of fassd serve, after --")
    options = parser.parse_args()
    check_file(options.json)
    settings = {
        "model": options.model,
        "size": [HEIGHT, WIDTH],
        "format": "JPEG in, PNG out",
        "server": options.server,
    }
    found = measure(options.model, options.seconds, options.server)
    figures = {"settings": settings, **found, "environment": environment()}
    print(json.dumps(figures, indent=1))
    if options.json is not None:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
