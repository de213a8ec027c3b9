"""Reading weights: the authors' files, state dicts, safetensors, and ImageNet encoders.

Nothing in a file is ever executed: pickles go through PyTorch's restricted unpickler with a fixed
list of what else they may name, which is the NumPy scalars that the authors' files carry.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from fassd.models.info import read_info, remember

LIST_AT_MOST = 6
"""How many names of a list an error spells out before it only counts."""

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile put before every key."""

HOLDERS = ("model_state", "state_dict", "model")
"""Keys under which a checkpoint may keep its state dict."""


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or whose weights do not fit the model."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did. Keys are the model's own spelling, but for `ignored`.

    Attributes:
        path: the file.
        loaded: keys that were copied into the model.
        missing: keys of the model that the file does not have, left as they were.
        ignored: keys of the file that the model has no place for, current spelling.
        misshapen: keys that both have at different shapes, left as they were.
        encoder_only: the file held an encoder without a decoder.
    """

    path: Path
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]
    misshapen: tuple[str, ...]
    encoder_only: bool

    def __str__(self) -> str:
        what = "encoder only, " if self.encoder_only else ""
        text = f"{self.path.name}: {what}{len(self.loaded)} tensors loaded"
        for label, keys in (
            ("not in the file", self.missing),
            ("ignored", self.ignored),
            ("misshapen", self.misshapen),
        ):
            if keys:
                text += f"; {label}: {_enumerate(keys)}"
        return text


def load_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], *, strict: bool = True
) -> LoadReport:
    """Load the weights in `path` into `model`, in place, converting to its dtypes and devices.

    Accepted are the authors' ``.pkl`` and ``.pth`` files, any file that ``torch.save`` wrote of a
    state dict or of a dict that has one under ``model_state``, ``state_dict`` or ``model``, and
    ``.safetensors``. Keys may carry ``module.`` or ``_orig_mod.`` and the authors' older spelling
    (``aspp.``, ``aspp2``, ``Dab_leo.``, ``ddconv3x1``). A file without a decoder is taken for an
    encoder (``base.``, or the bare numbers of ``model.base.state_dict()``): it has to cover the
    model's whole encoder; what else it has, a classifier for instance, is ignored, and the rest of
    the model stays as it was. A BatchNorm's ``num_batches_tracked`` may be missing.

    A file that fills the whole model also tells it the names and colours of its classes, if it has
    them, as those of ``fassd train`` do (`fassd.models.info_of`).

    Args:
        model: a network of the family, or any module; plain, compiled or in DataParallel.
        path: the file.
        strict: False loads every tensor that fits and leaves the others, as the report tells.

    Returns:
        Which keys were loaded and which were not.

    Raises:
        CheckpointError: a file that cannot be read as a checkpoint, or one that does not fit. The
            message lists what is missing, unexpected and misshapen, and names the variants that
            the file does fit. The model is as it was.
        OSError: the file cannot be opened.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"no weights file {os.fspath(path)!r}; published names are synthetic, "
            "cityscapes, imagenet (for a model given by its name)"
        )
    path = Path(path)
    own = {_unwrapped(key): (key, value) for key, value in model.state_dict().items()}
    found = _canonical(_read_tensors(path), path, own)
    fit = _compare(path, found, {key: value for key, (_, value) in own.items()})
    if not fit.loaded or (strict and not _acceptable(fit)):
        raise CheckpointError(_explain(fit, found, own))
    # Through load_state_dict, so that modules that watch their loading see it.
    model.load_state_dict({own[key][0]: found[key] for key in fit.loaded}, strict=False)
    if not fit.missing and not fit.misshapen:
        remember(model, read_info(path))
    return fit


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


def _read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The state dict in `path`, keys as the file spells them."""
    content = _read(path)
    if isinstance(content, Mapping):
        for name in HOLDERS:
            if isinstance(content.get(name), Mapping):
                content = content[name]
                break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    if not content:
        raise CheckpointError(f"{path} holds an empty state dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds no state dict: {key!r} is a {type(value).__name__}, and there is "
                f"no {' or '.join(map(repr, HOLDERS))} beside it"
            )
    return content


def _read(path: Path) -> Any:
    with path.open("rb"):  # a file that cannot be opened is an OSError, not a bad checkpoint
        pass
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_numpy_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file makes the readers raise almost anything.
    except Exception as error:
        # PyTorch's own text is cut short: it recommends to load the file without the restriction.
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"was refused, and nothing in it executed: it names {refused[1]}, "
            "which is not on the list of what a checkpoint may name; if it holds a whole module, "
            "write its weights alone, with torch.save(model.state_dict(), ...)"
            if refused
            else "is damaged or not a checkpoint"
        )
        detail = "" if isinstance(error, UnpicklingError) else f" ({error!r:.120})"
        raise CheckpointError(f"{path} {reason}{detail}") from None


def _numeric_scalar(dtype: np.dtype[Any], value: bytes) -> Any:
    """Stands in for NumPy's scalar reconstructor, for plain numbers only."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufc":
        raise ValueError(f"a scalar of {dtype!r} in a checkpoint")
    return np.frombuffer(value, dtype, count=1)[0]


def _numpy_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """All that a pickle may name beyond tensors and containers: what np.float64(1.0) is made of."""
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [
        (_numeric_scalar, "numpy.core.multiarray.scalar"),  # NumPy 1
        (_numeric_scalar, "numpy._core.multiarray.scalar"),  # NumPy 2
        np.dtype,
        *dtypes,
    ]


# --- Spelling ----------------------------------------------------------------------------------


def _unwrapped(key: str) -> str:
    while key.startswith(WRAPPERS):
        key = key.split(".", 1)[1]
    return key


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
            raise CheckpointError(f"{path} holds {name} twice, in two spellings")
        renamed[name] = value
    return renamed


# --- Explaining --------------------------------------------------------------------------------


def _enumerate(names: Iterable[str]) -> str:
    names = list(names)
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
    from fassd.models.zoo import VARIANTS  # the zoo imports this module

    num_classes = found["finalConv.bias"].numel() if "finalConv.bias" in found else 19
    alpha = _alpha_of(found)
    arguments = (f", num_classes={num_classes}" if num_classes != 19 else "") + (
        f", alpha={alpha}" if alpha != 2 else ""
    )
    options = (f" --classes {num_classes}" if num_classes != 19 else "") + (
        f" --alpha {alpha}" if alpha != 2 else ""
    )
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
