"""What a training run is made of: one dataclass, written as YAML, with presets."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from fassd.io.untrusted import read_text, read_yaml, shortened, shown

__all__ = ["CHANGEABLE", "Recipe", "RecipeError", "differences", "list_presets", "load_recipe"]

# fmt: off
CHANGEABLE = frozenset((
    "learning_rate", "log_every", "power", "save_every", "steps", "threads", "val_every",
    "val_pictures", "warmup", "workers",
))
# fmt: on
"""Settings that may change when a run is resumed."""


MOST_TEXT = 1000
"""Characters of a setting."""


class RecipeError(ValueError):
    """A recipe that cannot be read or makes no sense; names the setting and what it accepts."""


@dataclass(frozen=True)
class Recipe:
    """A training run, but for the data. The defaults are those of the authors (preset `paper`).

    Attributes:
        model: a name of `fassd.list_models()`.
        alpha: how much narrower DAPF's branches are.
        encoder: "imagenet" starts from the authors' ImageNet encoder (downloaded once), "random"
            from Kaiming normal.
        weights: what to start from instead: a file or name that `fassd.load_checkpoint` or
            `fassd.create_model` takes. Tensors of other shapes (another head) stay random.
        crop: height and width in pixels that the network sees in training.
        scale: smallest and largest factor by which pictures are resized before the crop.
        flip: probability of mirroring left and right.
        jitter: strength of random brightness, contrast and saturation, 0 (none) to 1.
        loss: "bootstrapped" (`BootstrappedCrossEntropy`) or "cross_entropy".
        min_pixels, threshold: K and the threshold of the bootstrapped loss.
        optimizer: "sgd" (with `momentum`) or "adamw".
        learning_rate: at the start; it falls to 0 as (1 - step / steps) ** `power`.
        momentum: of SGD; the first beta of AdamW.
        weight_decay: on every parameter, biases and batch norms too, as the authors have it.
        power: of the schedule.
        warmup: steps over which the rate rises from near 0.
        clip: largest norm of the gradient; None does not clip.
        steps: optimizer steps.
        batch: pictures per optimizer step, over all processes and micro-batches.
        accumulate: micro-batches per step and process, so that a large `batch` fits a small card.
            Batch norm sees a micro-batch.
        precision: "float32", "bfloat16" or "float16" (autocast; weights stay float32), or "auto":
            bfloat16 where the device computes in it, else float32.
        channels_last: memory layout of the convolutions.
        ema: decay of the moving average of the weights, which is then what is evaluated and kept;
            None has none.
        sync_bn: batch norm over all processes instead of over each one's micro-batch.
        accelerate: fused modules, which training runs as the reference and validation as fused.
        deterministic: only algorithms that give the same bits again; slower, and on a GPU with more
            memory. On a CPU a run gives the same bits without it.
        seed: of the weights, the order of pictures and their augmentation.
        workers: processes that read pictures; 0 reads in the training process.
        threads: CPU threads of the training process, by whose number sums round; None is PyTorch's
            choice.
        log_every: steps between lines on the screen and looks at the loss.
        val_every: steps between validations; 0 validates at the end only.
        val_pictures: at most so many per validation, evenly spread; None takes all.
        save_every: steps between checkpoints.
    """

    model: str = "fassd_net"
    alpha: int = 2
    encoder: Literal["imagenet", "random"] = "imagenet"
    weights: str | None = None
    crop: tuple[int, int] = (1024, 1024)
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.0
    loss: Literal["bootstrapped", "cross_entropy"] = "bootstrapped"
    min_pixels: int = 4096
    threshold: float = 0.3
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9
    warmup: int = 0
    clip: float | None = None
    steps: int = 90_000
    batch: int = 16
    accumulate: int = 1
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = True
    ema: float | None = None
    sync_bn: bool = False
    accelerate: bool = True
    deterministic: bool = False
    seed: int = 0
    workers: int = 4
    threads: int | None = None
    log_every: int = 20
    val_every: int = 1000
    val_pictures: int | None = None
    save_every: int = 500

    def __post_init__(self) -> None:
        from fassd.models import get_variant

        get_variant(self.model)
        _require(self, "alpha", self.alpha >= 1, "at least 1")
        _require(self, "crop", min(self.crop) >= 1, "two positive numbers, height and width")
        low, high = self.scale
        _require(self, "scale", 0 < low <= high < math.inf, "two factors, 0 < smallest <= largest")
        for name in ("flip", "jitter"):
            _require(self, name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        for name in ("min_pixels", "steps", "batch", "accumulate", "log_every", "save_every"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup", "val_every", "seed"):
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        _require(self, "workers", 0 <= self.workers <= 1024, "from 0 to 1,024")
        _require(self, "warmup", self.warmup < self.steps, f"below steps ({self.steps})")
        _require(self, "learning_rate", 0 < self.learning_rate < math.inf, "above 0")
        for name in ("threshold", "weight_decay", "power"):
            _require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        _require(self, "momentum", 0 <= self.momentum < 1, "from 0 to below 1")
        _require(self, "ema", self.ema is None or 0 <= self.ema < 1, "null or from 0 to below 1")
        _require(self, "clip", self.clip is None or self.clip > 0, "null or above 0")
        for name in ("val_pictures", "threads"):
            value = getattr(self, name)
            _require(self, name, value is None or value >= 1, "null or at least 1")
        _require(
            self,
            "batch",
            self.batch % self.accumulate == 0,
            f"a multiple of accumulate ({self.accumulate})",
        )

    def replace(self, **changes: Any) -> Recipe:
        """A copy with these settings, given as they stand in YAML.

        A warmup that fewer `steps` leave no room for is shortened, with a warning.
        """
        return _changed(self.to_dict(), changes, "the recipe")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON have them."""
        values = dataclasses.asdict(self)
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
        }

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def _changed(base: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of `base` with `changes`, for whose steps the warmup of `base` may be too long."""
    values = {**base, **changes}
    steps, warmup = values.get("steps"), base.get("warmup")
    if "warmup" not in changes and type(steps) is int and warmup and 1 <= steps <= warmup:
        values["warmup"] = steps - 1
        warnings.warn(
            f"warmup shortened from {warmup} to {steps - 1} steps, as there are {steps} in all",
            stacklevel=3,
        )
    return from_dict(values, where)


def _require(recipe: Recipe, name: str, holds: bool, accepted: str) -> None:
    if not holds:
        raise RecipeError(f"{name} must be {accepted}, got {shown(getattr(recipe, name))}")


def differences(run: Recipe, recipe: Recipe) -> list[str]:
    """What `recipe` changes in that of a run, such as "steps 12 instead of 6".

    Raises:
        RecipeError: it changes a setting that is not in `CHANGEABLE`.
    """
    before, after = run.to_dict(), recipe.to_dict()
    changed = [name for name in before if after[name] != before[name]]
    fixed = [name for name in changed if name not in CHANGEABLE]
    if fixed:
        raise RecipeError(
            f"a run cannot go on with another {', '.join(fixed)}; what may change is "
            f"{', '.join(sorted(CHANGEABLE))}"
        )
    return [f"{name} {after[name]} instead of {before[name]}" for name in changed]


def list_presets() -> list[str]:
    """Names that `load_recipe` takes."""
    folder = resources.files("fassd.training") / "presets"
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_recipe(source: str | os.PathLike[str]) -> Recipe:
    """Read a preset or a YAML file.

    A file holds settings of `Recipe` by name; what it leaves out is as in `paper`, or as in the
    preset that it names under `preset`.

    Raises:
        RecipeError: an unknown preset or setting, or a value that is not accepted.
        OSError: the file cannot be read.
    """
    presets = list_presets()
    if str(source) in presets:
        return from_dict(_preset(str(source)), f"preset {source}")
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        raise RecipeError(
            f"a recipe must be a preset ({', '.join(presets)}) or a .yaml file, got {str(source)!r}"
        )
    try:
        text = read_text(path)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from error
    values = _read_yaml(text, str(path))
    base = values.pop("preset", None)
    if base is not None and not (isinstance(base, str) and base in presets):
        raise RecipeError(f"{path}: preset must be one of {', '.join(presets)}, got {shown(base)}")
    return _changed(_preset(base) if base else {}, values, str(path))


def _preset(name: str) -> dict[str, Any]:
    file = resources.files("fassd.training") / "presets" / f"{name}.yaml"
    return _read_yaml(file.read_text(encoding="utf-8"), f"preset {name}")


def _read_yaml(text: str, where: str) -> dict[str, Any]:
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{where} is no YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(f"{where} must hold settings (name: value), got {type(values).__name__}")
    return values


def from_dict(values: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain values; numbers may come as text, as the command line has them.

    Raises:
        RecipeError: an unknown setting, or a value that is not accepted.
    """
    types = get_type_hints(Recipe)
    for key in values:
        if key not in types:
            # Of slips alone: "class_weights" is another thing than "weights".
            near = difflib.get_close_matches(shortened(str(key), 40), types, n=1, cutoff=0.8)
            guess = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(types)}"
            raise RecipeError(f"{where}: unknown setting {shown(key)}{guess}")
    try:
        return Recipe(**{key: _typed(key, value, types[key]) for key, value in values.items()})
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as the annotation `kind` has it."""
    options = get_args(kind)
    if get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in options:
            raise RecipeError(f"{name} must be one of {', '.join(options)}, got {shown(value)}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(options):
            raise RecipeError(f"{name} must be a list of {len(options)}, got {shown(value)}")
        return tuple(
            _typed(name, item, option) for item, option in zip(value, options, strict=True)
        )
    if type(None) in options:
        return None if value is None else _typed(name, value, options[0])
    if kind is float and isinstance(value, str):  # YAML reads 5e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, str) and len(value) > MOST_TEXT:
        raise RecipeError(f"{name} must have at most {MOST_TEXT:,} characters, got {shown(value)}")
    if type(value) is not kind:
        raise RecipeError(f"{name} must be of type {kind.__name__}, got {shown(value)}")
    return value
