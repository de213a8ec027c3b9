"""Labels every picture that comes into a folder, until it is told to stop. No web server.

    python examples/folder_worker.py inbox -o labels -w runs/a/best.safetensors

A picture is taken once its size and date stay the same between two looks, so that one that is still
being copied is left alone. Its labels, class indices as grey levels, are written under its name and
``.png``, whole or not at all; then the picture itself moves to ``inbox/done``, or, if it cannot be
read, to ``inbox/failed`` with the reason beside it. A worker that is killed has lost nothing: what
it was at is still in the inbox. SIGTERM and Ctrl-C end it after the picture at work.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

import fassd
from fassd.io.files import SUFFIXES, check_folder
from fassd.io.images import ImageError, write_image

State = dict[Path, tuple[int, int]]


def waiting(inbox: Path) -> State:
    """The pictures in a folder, with size and date of each."""
    found: State = {}
    for path in inbox.iterdir():
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            facts = path.stat()
            found[path] = facts.st_size, facts.st_mtime_ns
    return found


def label(path: Path, segmenter: fassd.Segmenter, output: Path) -> str:
    """Label one picture and put it away; what there is to say of it."""
    try:
        labels = segmenter.predict(path)
    except ImageError as error:
        put_away(path, "failed")
        (path.parent / "failed" / f"{path.name}.txt").write_text(f"{error}\n")
        return f"failed: {error}"
    write_image(output / f"{path.name}.png", labels)
    put_away(path, "done")
    return f"{path.name}: {labels.shape[0]}x{labels.shape[1]}"


def put_away(path: Path, name: str) -> None:
    folder = path.parent / name
    folder.mkdir(exist_ok=True)
    os.replace(path, folder / path.name)


def work(
    inbox: Path, output: Path, segmenter: fassd.Segmenter, stop: threading.Event, wait: float
) -> None:
    """Label what comes, oldest first, until `stop` is set."""
    before: State = {}
    while not stop.is_set():
        now = waiting(inbox)
        settled = [path for path, facts in now.items() if before.get(path) == facts]
        for path in sorted(settled, key=lambda each: (now[each][1], each.name)):
            if stop.is_set():
                return
            print(label(path, segmenter, output), flush=True)
        before = now
        stop.wait(wait)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("inbox", type=Path, help="folder that pictures come into")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the labels")
    parser.add_argument("-m", "--model", default="fassd_net_l2", help="network, if -w names none")
    parser.add_argument("-w", "--weights", default="streets", help="a name, or a run's file")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two looks")
    given = parser.parse_args()
    if not given.inbox.is_dir():
        sys.exit(f"{given.inbox}: no such folder")
    try:
        check_folder(given.output)
        is_file = os.path.exists(given.weights)
        segmenter = (
            fassd.Segmenter(given.weights)
            if is_file
            else fassd.Segmenter(given.model, weights=given.weights)
        )
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    print(f"waiting for pictures in {given.inbox}", flush=True)
    work(given.inbox, given.output, segmenter, stop, given.every)


if __name__ == "__main__":
    main()
