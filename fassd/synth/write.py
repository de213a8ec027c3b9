"""A tree of generated streets, laid out and labelled like Cityscapes."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import cv2
import numpy as np

from fassd.io.files import check_folder, replacing
from fassd.io.images import write_image
from fassd.io.untrusted import read_json
from fassd.synth import VERSION, check_scene, render_street

CITY = "synth"
NOTE = "synth.json"  # generator, seed and size with which each split was drawn

LABEL_IDS = np.array(
    [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], np.uint8
)
"""Official labelId of each trainId."""


# Sensor noise repeats nothing: only coding symbols takes 26 ms for a 512 x 1024 picture, searching
# for repetitions 60, and the file is a tenth smaller.
FOR_NOISE = (
    cv2.IMWRITE_PNG_COMPRESSION, 1,
    cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY,
)  # fmt: skip


def frame_paths(root: Path, split: str, index: int) -> tuple[Path, Path]:
    """Paths of picture and labelIds of one frame."""
    name = f"{CITY}_{index:06d}_000019"
    return (
        root / "leftImg8bit" / split / CITY / f"{name}_leftImg8bit.png",
        root / "gtFine" / split / CITY / f"{name}_gtFine_labelIds.png",
    )


def write_tree(
    root: str | os.PathLike[str],
    split: str = "train",
    count: int = 100,
    seed: int = 0,
    size: tuple[int, int] = (1024, 2048),
    workers: int | None = None,
    on_frame: Callable[[], object] | None = None,
) -> None:
    """Write `count` frames of one split, and record in `NOTE` how they were made.

    A frame depends only on `seed`, `split`, its index and `size`: any number of workers writes the
    same bytes. Each file appears complete under its name, and replaces an older one of that name.

    Args:
        root: folder of the dataset; created if missing.
        split: one of `SPLITS`, each of which has its own textures.
        count: number of frames; those of a smaller count are the first of a larger one.
        seed: seed of the scenes, 0 or more.
        size: (height, width) in pixels, each at least 16.
        workers: number of processes; by default one for each core that this process may use.
        on_frame: function called after each frame, in this process.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: the split holds other pictures, which would stay among the new ones.
        OSError: the folder is not writable.
    """
    root = Path(root)
    _check(root, split, count, seed, size, workers)
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    _write_note(root, split, None)  # until all are done, the seed of a frame is unknown
    jobs = [(root, split, index, seed, size) for index in range(count)]
    for _ in _write_frames(jobs, min(workers, count)):
        if on_frame:
            on_frame()
    made = {
        "version": VERSION, "seed": seed, "count": count, "height": size[0], "width": size[1],
    }  # fmt: skip
    _write_note(root, split, made)


def _check(
    root: Path, split: str, count: int, seed: int, size: tuple[int, int], workers: int | None
) -> None:
    check_scene(*size, seed, split)
    if not 1 <= count <= 1_000_000:
        raise ValueError(f"count must be from 1 to 1,000,000, got {count}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    check_folder(root)
    ours = {path for index in range(count) for path in frame_paths(root, split, index)}
    for kind in ("leftImg8bit", "gtFine"):
        for path in sorted((root / kind / split).glob("*/*.png")):
            if path not in ours:
                raise FileExistsError(
                    f"{path}: would stay among the new pictures of split {split!r}; "
                    "remove it, or choose another folder"
                )


def _write_frames(
    jobs: list[tuple[Path, str, int, int, tuple[int, int]]], workers: int
) -> Iterator[None]:
    """Write all frames, in this process if `workers` is 1; yield after each."""
    if workers == 1:
        for job in jobs:
            _write_frame(*job)
            yield
        return
    # Spawned, not forked: a process that has used PyTorch or OpenCV has threads and locks.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    )
    try:
        for future in as_completed([pool.submit(_write_frame, *job) for job in jobs]):
            future.result()
            yield
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_frame(root: Path, split: str, index: int, seed: int, size: tuple[int, int]) -> None:
    image, labels = render_street(*size, seed, split=split, index=index)
    image_path, mask_path = frame_paths(root, split, index)
    _, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), FOR_NOISE)
    with replacing(image_path) as file:
        file.write(png.tobytes())
    write_image(mask_path, LABEL_IDS[labels])


def _write_note(root: Path, split: str, made: dict[str, int] | None) -> None:
    """Record in `NOTE` how this split was made, or nothing; the notes on other splits stay."""
    path = root / NOTE
    try:
        splits = dict(read_json(path.read_text())["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        splits = {}
    splits.pop(split, None)
    if made is not None:
        splits[split] = made
    note = {"generator": "fassd synth", "splits": splits}
    with replacing(path) as file:
        file.write((json.dumps(note, indent=1) + "\n").encode())
