"""Files and folders: writing completely or not at all, kinds of output, links among folders.

One rule decides the kind of an output: an existing folder is a folder; otherwise a name with the
ending of a file (`FILE_ENDINGS`) is a file; any other name is a folder, and is created.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from fassd.models.replacing import replacing as replacing

# fmt: off
SUFFIXES = frozenset((
    ".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tga", ".tif", ".tiff", ".webp",
))
"""Endings that mark a file in a folder or a glob as a picture."""

VIDEO_SUFFIXES = frozenset((
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv", ".y4m",
))
"""Endings that mark a file as a video."""

FILE_ENDINGS = SUFFIXES | VIDEO_SUFFIXES | {
    ".apng", ".csv", ".engine", ".eps", ".exr", ".hdr", ".heic", ".heif", ".htm", ".html", ".ico",
    ".j2k", ".jfif", ".json", ".jsonl", ".jxl", ".log", ".md", ".mp3", ".npy", ".npz", ".onnx",
    ".pdf", ".pkl", ".ps", ".psd", ".pt", ".pt2", ".pth", ".safetensors", ".svg", ".tar", ".tgz",
    ".txt", ".wav", ".xml", ".yaml", ".yml", ".zip",
}
# fmt: on
"""Endings that mark an output that does not exist yet as a file, even of kinds not written here."""


# ---------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A path of the same name in a hidden folder beside it.

    When the block succeeds, the files written there get their final names, `path` last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        inside = Path(folder) / path.name
        yield inside
        for written in sorted(Path(folder).iterdir(), key=lambda each: each == inside):
            os.replace(written, path.with_name(written.name))


# ---------------------------------------------------------------------------------------- locking

LOCK = ".lock"
_LOCKED: set[Path] = set()  # by this process itself, which the system's lock does not keep out


class InUseError(OSError):
    """Another process, or another part of this one, works in a folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others out of a folder within the block; the system unlocks it however a process ends.

    Nothing is locked in a folder that cannot be written to, nor, after a warning, where there are
    no locks.

    Raises:
        InUseError: others are in it.
    """
    place = folder.resolve()
    busy = InUseError(f"{folder} is in use by another process or run: wait for it, or stop it")
    if place in _LOCKED:
        raise busy
    with contextlib.ExitStack() as stack:
        if os.access(folder, os.W_OK):
            try:
                import fcntl

                file = stack.enter_context((folder / LOCK).open("ab"))
                # Not flock: worker processes would inherit it and hold it for a while after the
                # process was killed.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise busy from None
            except ImportError:  # on Windows
                pass
            except OSError as error:
                warnings.warn(
                    f"{folder} cannot be locked ({error}): make sure that no other process uses it",
                    stacklevel=2,
                )
        _LOCKED.add(place)
        stack.callback(_LOCKED.discard, place)
        yield


# --------------------------------------------------------------------------------------- checking


def names_file(output: Path) -> bool:
    """True if an output is a file, and not a folder, by its name."""
    return output.suffix.lower() in FILE_ENDINGS and not output.is_dir()


def check_file(file: Path | None) -> None:
    """Check that `file`, if any, can be written, without writing.

    Raises:
        OSError: the path is a folder, or in a folder that is not writable.
    """
    if file is not None:
        _check_writable(file.parent)
        if file.is_dir():
            raise IsADirectoryError(f"cannot write to {file}: it is a folder, not a file")


def check_folder(folder: Path) -> None:
    """Check that files can be written into `folder`, which need not exist; nothing is left there.

    Raises:
        OSError: they cannot be; the message names the folder and the reason.
        ValueError: the folder has the name of a file.
    """
    if names_file(folder) and not folder.exists():
        raise ValueError(f"cannot write into {folder}: it is the name of a file, give a folder")
    _check_writable(folder)


def _check_writable(folder: Path) -> None:
    whole = folder.absolute()
    existing = next(place for place in (whole, *whole.parents) if os.path.lexists(place))
    try:
        if not existing.is_dir():
            raise NotADirectoryError(None, "not a folder")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        where = "" if existing == whole else f"{existing}: "
        raise OSError(f"cannot write to {folder}: {where}{error.strerror}") from error


# ---------------------------------------------------------------------------------------- finding


def folders_below(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and all folders below it except hidden ones, each with its visible files' names.

    Links are followed, but each folder comes once, however many links lead to it: under its own
    path if that is below `root`. Folders that cannot be read are left out.
    """
    seen: set[str] = set()
    starts = [root]
    for start in starts:  # grows by the links that are found
        for place, subfolders, names in os.walk(start):
            identity = os.path.realpath(place)
            if identity in seen:
                subfolders.clear()
                continue
            seen.add(identity)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            starts += (
                Path(place, name) for name in subfolders if os.path.islink(Path(place, name))
            )
            yield Path(place), [name for name in names if not name.startswith(".")]
