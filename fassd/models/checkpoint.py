"""Loading weights: the authors' files, other people's, state dicts, and ImageNet encoders."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fassd.models.info import read_info, remember
from fassd.models.tensor_files import (
    CheckpointError,
    check_dense,
    check_weights,
    read_content,
    shown,
)
from fassd.models.variants import VARIANTS

LIST_AT_MOST = 6
"""Number of names of a list that an error spells out; of longer lists it only gives the count."""

WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Prefixes that torch.compile, FSDP and checkpointing put anywhere into a key."""

AVERAGED = frozenset(("average", "averaged", "avg", "ema", "shadow", "swa"))
HOLDING = AVERAGED | frozenset((
    "checkpoint", "ckpt", "dict", "forward", "model", "module", "net", "network", "parameters",
    "params", "state", "weights",
))  # fmt: skip
"""Words in the names under which a checkpoint stores weights, and those of averaged weights.

``model_state_dict`` and ``_forward_module`` are such names: keys of a dict that holds the weights,
or prefixes of the weights' own keys.
"""

MOST_HOLDERS = 5
"""Maximum depth to which they may be nested."""

MOST_BYTES = 1 << 30
MOST_TIMES = 64
"""Maximum size of a file: a number of bytes, or a multiple of the weights that it is for."""


@dataclass(frozen=True)
class LoadReport:
    """The result of `load_checkpoint`. Keys are spelled as in the model, except in `ignored`.

    Attributes:
        path: path of the file.
        loaded: keys that were copied into the model.
        missing: keys of the model that the file does not have; these weights were left as they
            were.
        ignored: keys of the file for which the model has no place, in the current spelling.
        misshapen: keys whose shapes differ in file and model; these weights were left as they were.
        encoder_only: True if the file held an encoder without a decoder.
        places: location of the weights within the file, "model." for instance, followed by the
            locations of other weights in it that would fit about as well.
    """

    path: Path
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]
    misshapen: tuple[str, ...]
    encoder_only: bool
    places: tuple[str, ...] = ("",)

    def __str__(self) -> str:
        what = "encoder only, " if self.encoder_only else ""
        text = f"{self.path.name}: {what}{len(self.loaded)} tensors loaded"
        for label, keys in (
            ("not in the file", self.missing),
            ("ignored", self.ignored),
            ("of another shape, left as they were", self.misshapen),
        ):
            if keys:
                text += f"; {label}: {_enumerate(keys)}"
        return text + (f"; {self._choice()}" if len(self.places) > 1 else "")

    def _choice(self) -> str:
        taken, *others = (place.rstrip(".") or "the top level" for place in self.places)
        return f"of several sets of weights, {taken} was taken, not {_enumerate(others)}"


def load_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], *, strict: bool = True
) -> LoadReport:
    """Load the weights in `path` into `model`, in place, converting to its dtypes and devices.

    Accepted are the authors' ``.pkl`` and ``.pth`` files, any file that ``torch.save`` wrote of a
    state dict, and ``.safetensors``. The state dict may be nested in dicts under ``state_dict``,
    ``model_state_dict``, ``model``, ``net``, ``ema`` and names made of the same words, and its keys
    may begin with such a name, as Lightning's do. Where several state dicts fit, the most complete
    one is taken, an average (EMA) before its equals, and a warning names it. Keys may carry
    ``module.`` or ``_orig_mod.`` and the authors' older spelling (``aspp.``, ``aspp2``,
    ``Dab_leo.``, ``ddconv3x1``). A file without a decoder is taken for an encoder (``base.``, or
    the bare numbers of ``model.base.state_dict()``): it has to cover the model's whole encoder;
    anything else in it, a classifier for instance, is ignored, and the rest of the model stays as
    it was. A BatchNorm's ``num_batches_tracked`` may be missing.

    A file that fills the whole model also gives it the names and colours of its classes, if it
    holds them, as the files of ``fassd train`` do (`fassd.models.info_of`).

    Args:
        model: a network of the family, or any module; plain, compiled or in DataParallel.
        path: path of the file.
        strict: False loads every tensor that fits and leaves the others; the report lists both.

    Returns:
        A report of the keys that were loaded and of those that were not.

    Raises:
        CheckpointError: the file cannot be read as a checkpoint, is damaged, or does not fit (the
            message lists what is missing, unexpected and misshapen, and names the variants that the
            file does fit); or a weight is not a finite real number, or a variance is negative (the
            message names the tensor). The model is left as it was.
        OSError: the file cannot be opened.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"no weights file {os.fspath(path)!r}; published names are "
            "streets, synthetic, cityscapes, imagenet (for a model given by its name)"
        )
    path = Path(path)
    own = {_unwrapped(key): (key, value) for key, value in model.state_dict().items()}
    values = {key: value for key, (_, value) in own.items()}
    _check_size(path, values.values())
    weights, places = _weights(path, read_content(path), own.keys())
    check_dense(path, weights)
    found = _canonical(weights, path, own)
    fit = replace(_compare(path, found, values), places=places)
    if not fit.loaded or (strict and not _acceptable(fit)):
        raise CheckpointError(_explain(fit, found, own))
    loaded = {key: found[key] for key in fit.loaded}
    check_weights(path, loaded, {key: values[key].dtype for key in loaded})
    if len(places) > 1:
        warnings.warn(f"{path}: {fit._choice()}", stacklevel=2)
    # Through load_state_dict, so that modules that watch their loading see it.
    model.load_state_dict({own[key][0]: value for key, value in loaded.items()}, strict=False)
    if not fit.missing and not fit.misshapen:
        remember(model, read_info(path))
    return fit


def classes_in(path: str | os.PathLike[str]) -> int | None:
    """Number of classes of the head in a file of weights; None if it cannot be determined."""
    content: Any = None
    with contextlib.suppress(CheckpointError, OSError):
        content = read_content(Path(path))
    holders = _holders(content) if isinstance(content, Mapping) else ()
    heads = (
        len(value)
        for _, tensors in holders
        for key, value in tensors.items()
        if key.endswith("finalConv.weight") and value.dim() == 4
    )
    return next(heads, None)


def _compare(path: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> LoadReport:
    encoder_only = not any(
        key.startswith(("denseBlocksUp.", "conv1x1_up.", "finalConv.")) for key in found
    ) and any(key.startswith("base.") for key in found)
    shared = [key for key in own if key in found]
    loaded = tuple(key for key in shared if own[key].shape == found[key].shape)
    missing = tuple(
        key for key in own if key not in found and not key.endswith("num_batches_tracked")
    )
    ignored = tuple(key for key in found if key not in own)
    misshapen = tuple(key for key in shared if own[key].shape != found[key].shape)
    return LoadReport(path, loaded, missing, ignored, misshapen, encoder_only)


def _acceptable(fit: LoadReport) -> bool:
    if fit.encoder_only:
        return not fit.misshapen and not any(key.startswith("base.") for key in fit.missing)
    return not (fit.missing or fit.ignored or fit.misshapen)


# --- What is in the file -----------------------------------------------------------------------


def _check_size(path: Path, own: Iterable[Tensor]) -> None:
    size, needed = path.stat().st_size, sum(value.nbytes for value in own)
    if size > max(MOST_BYTES, MOST_TIMES * needed):
        raise CheckpointError(
            f"{path} has {size / 1e6:,.0f} MB and the model's weights {needed / 1e6:,.0f} MB: not "
            "a checkpoint of it"
        )


def _weights(path: Path, content: Any, own: Set[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Find the state dict in a file's content with most keys of a model, averaged ones first.

    Args:
        path: path of the file.
        content: content of the file.
        own: keys of the model.

    Returns:
        Its tensors, and the locations of all state dicts that might have been meant, its own first.

    Raises:
        CheckpointError: the content holds no state dict.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    if not content:
        raise CheckpointError(f"{path} holds an empty state dict")
    found = [
        (place + prefix, tensors, sum(_is_known(key, own) for key in tensors))
        for place, holder in _holders(content)
        for prefix, tensors in _by_prefix(holder, own).items()
    ]
    if not found:
        key, value = next(iter(content.items()))
        name = repr(shown(key)) if isinstance(key, str) else f"a {type(key).__name__}"
        raise CheckpointError(
            f"{path} holds no state dict: {name} is a {type(value).__name__}, and "
            "there is none under 'model', 'state_dict', 'net', 'ema' or the like"
        )
    # Without a known key, the largest.
    found.sort(key=lambda e: (e[2], not e[2] and len(e[1]), not AVERAGED.isdisjoint(_words(e[0]))))
    place, tensors, known = found.pop()
    others = [other for other, _, count in found if 2 * count > known]
    return tensors, (place, *others)


def _holders(content: Mapping[Any, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Tensors of a file and of the dicts in it that may be state dicts, by location."""
    queue: deque[tuple[str, Mapping[Any, Any]]] = deque([("", content)])
    seen: set[int] = set()
    while queue:
        place, holder = queue.popleft()
        if id(holder) in seen or place.count(".") > MOST_HOLDERS:
            continue
        seen.add(id(holder))
        yield (
            place,
            {k: v for k, v in holder.items() if isinstance(k, str) and isinstance(v, Tensor)},
        )
        queue.extend(
            (f"{place}{name}.", part)
            for name, part in holder.items()
            if isinstance(part, Mapping) and isinstance(name, str) and _words(name) <= HOLDING
        )


def _by_prefix(tensors: Mapping[str, Tensor], own: Set[str]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the prefix before the keys of a model; all tensors if no key is the model's."""
    prefixes = {
        key: next((p for p in _prefixes(key) if _is_known(key[len(p) :], own)), None)
        for key in tensors
    }
    used = set(prefixes.values()) - {None}
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        prefix = prefixes[key]
        if prefix is None:  # the prefix before the model's key
            near = (p for p in reversed(_prefixes(key)) if p in used or not used)
            prefix = next(near, None)
        if prefix is not None:
            groups.setdefault(prefix, {})[key[len(prefix) :]] = value
    for group in groups.values():
        if "n_averaged" not in own:  # the counter of AveragedModel
            group.pop("n_averaged", None)
    return groups


# --- Spelling ----------------------------------------------------------------------------------


def _prefixes(key: str) -> list[str]:
    """Prefixes that may be taken off a key, from none to all the names that it begins with."""
    prefixes = [""]
    for part in key.split(".")[:MOST_HOLDERS]:
        if not _words(part) <= HOLDING:
            break
        prefixes.append(f"{prefixes[-1]}{part}.")
    return prefixes


def _words(name: str) -> set[str]:
    return set(re.findall(r"[^._]+", name))


def _is_known(key: str, own: Set[str]) -> bool:
    name = _current_spelling(key)
    return name in own or f"base.{name}" in own


def _unwrapped(key: str) -> str:
    key = WRAPPERS.sub("", key)
    while key.startswith("module."):
        key = key.removeprefix("module.")
    return key


@functools.lru_cache(4096)  # each key is looked up several times
def _current_spelling(key: str) -> str:
    """One key of a file in the spelling of the newer checkpoints, which is the model's."""
    parts = _unwrapped(key).split(".")
    parts[0] = {"aspp": "DAPF", "Dab_leo": "mda"}.get(parts[0], parts[0])
    parts = [re.sub(r"^aspp([234])$", r"pyBranch\1", part) for part in parts]
    return ".".join(re.sub(r"^ddconv", "parallel_ddconv", part) for part in parts)


def _canonical(tensors: Mapping[str, Tensor], path: Path, own: Iterable[str]) -> dict[str, Tensor]:
    """The file's tensors in the spelling of the model, whose keys are `own`."""
    bare_encoder = all(_unwrapped(key).split(".")[0].isdigit() for key in tensors) and any(
        key.startswith("base.") for key in own
    )
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = ("base." if bare_encoder else "") + _current_spelling(key)
        if name in renamed:
            raise CheckpointError(f"{path} holds {shown(name)} twice, in two spellings")
        renamed[name] = value
    return renamed


# --- Explaining --------------------------------------------------------------------------------


def _enumerate(names: Iterable[str]) -> str:
    names = [shown(name) for name in names]
    rest = len(names) - LIST_AT_MOST
    return ", ".join(names[:LIST_AT_MOST]) + (f" and {rest} more" if rest > 0 else "")


def _explain(
    fit: LoadReport, found: Mapping[str, Tensor], own: Mapping[str, tuple[str, Tensor]]
) -> str:
    missing = fit.missing
    ignored = fit.ignored
    if fit.encoder_only:  # neither an absent decoder nor a classifier is what is wrong
        missing = tuple(key for key in missing if key.startswith("base."))
        ignored = tuple(key for key in ignored if key.startswith("base."))
    shapes = [
        f"{key} {list(found[key].shape)} where the model has {list(own[key][1].shape)}"
        for key in fit.misshapen
    ]
    lines = [f"{fit.path} does not fit the model:"]
    for label, names in (("missing", missing), ("unexpected", ignored), ("misshapen", shapes)):
        if names:
            lines.append(f"  {label} ({len(names)}): {_enumerate(names)}")
    candidates = _fitting_models(fit.path, found)
    if candidates:
        calls, options = zip(*candidates, strict=True)
        lines.append(f"  the file fits {' or '.join(calls)}")
        lines.append(f"  on the command line: {' or '.join(options)}")
    return "\n".join(lines)


def _fitting_models(path: Path, found: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """The networks that the file fits, as calls of create_model and as options of fassd."""
    num_classes = found["finalConv.bias"].numel() if "finalConv.bias" in found else 19
    alpha = _alpha_of(found)
    given = {"num_classes": num_classes} if num_classes != 19 else {}
    if alpha != 2:
        given["alpha"] = alpha
    arguments = "".join(f", {name}={value}" for name, value in given.items())
    options = "".join(f" --{name.removeprefix('num_')} {value}" for name, value in given.items())
    fitting = []
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            candidate = variant.build(max(num_classes, 1), alpha)
        if _acceptable(_compare(path, found, candidate.state_dict())):
            fitting.append((f'create_model("{name}"{arguments})', f"--model {name}{options}"))
    return fitting


def _alpha_of(found: Mapping[str, Tensor]) -> int:
    """The smallest alpha that gives the DAPF in the file its width; 2 if there is none."""
    weight = found.get("DAPF.conv1x1.weight")
    if weight is None or weight.dim() != 4 or not 1 <= weight.shape[0] <= weight.shape[1] <= 224:
        return 2
    width, inplanes = weight.shape[:2]
    return next(alpha for alpha in range(1, inplanes + 1) if inplanes // alpha <= width)
