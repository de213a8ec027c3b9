"""The settings of a training run: one model, written as YAML, with presets."""

from __future__ import annotations

import contextlib
import difflib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from fassd.io.untrusted import problem, read_text, read_yaml, shortened, shown

# fmt: off
CHANGEABLE = frozenset((
    "learning_rate", "log_every", "patience", "power", "save_every", "schedule", "steps", "threads",
    "val_every", "val_pictures", "warmup", "workers",
))
# fmt: on
"""Settings that may change when a run is resumed."""


PRESETS = Path(__file__).with_name("presets")

OF_EARLIER_RUNS = {"init": "kaiming", "pad": "mean"}
"""Settings that complete recipes of earlier runs may lack."""


class RecipeError(ValueError):
    """A recipe cannot be read or makes no sense; names the setting and what it accepts."""


def _number(value: Any) -> Any:
    """Convert text to a float: YAML reads 5e-4 as text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _pair(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError("must be a list of 2")
    return tuple(value)


FROM_TEXT = BeforeValidator(_number)
PAIR = BeforeValidator(_pair)
Text = Annotated[str, StringConstraints(max_length=1000)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Above0 = Annotated[float, Field(gt=0), FROM_TEXT]
AtLeast0 = Annotated[float, Field(ge=0), FROM_TEXT]
Decay = Annotated[float, Field(ge=0, lt=1), FROM_TEXT]
Crop = Annotated[tuple[Positive, Positive], PAIR]
Stage = Annotated[tuple[Positive, Crop], PAIR]
Share = Annotated[float, Field(ge=0, le=1), FROM_TEXT]


class Recipe(BaseModel):
    """A training run, except for its data. The defaults are the authors' (preset `paper`).

    A value that is not accepted raises pydantic's ValidationError here, which is a ValueError;
    `load_recipe` and `replace` turn it into a RecipeError.

    Attributes:
        model: a name of `fassd.list_models()`, or a full one (`fassd.create_model`), with an
            encoder of timm for instance.
        alpha: factor by which DAPF's branches are narrower.
        encoder: initial weights of the encoder: "imagenet" loads the authors' ImageNet encoder
            (downloaded once), or timm's own weights for an encoder of timm; "random" loads none.
        encoder_rate: factor of the learning rate for the encoder, whose pretrained weights need
            smaller changes than the rest.
        freeze: number of first steps in which the encoder, batch norm statistics included, does not
            change; `steps` freezes it for the whole run.
        init: initial weights of the convolutions: "xavier" normal, as the authors did, or "kaiming"
            normal; an encoder of timm keeps timm's.
        weights: file or name of weights to start from instead, as for `fassd.load_checkpoint` or
            `fassd.create_model`. Tensors with other shapes (another head) stay random.
        shares: proportions of the data sets in the pictures, in any unit; None takes each picture
            of all sets equally often.
        crop: height and width, in pixels, of the network's input in training.
        stages: crops of the first steps, for runs that begin with small ones: pairs of a step and
            the crop used up to that step.
        scale: smallest and largest factor by which pictures are resized before the crop.
        flip: probability of mirroring left and right.
        rotate: True turns pictures by 0, 90, 180 or 270 degrees at random, for pictures that have
            no upper side, such as those from microscopes and from the air.
        pad: colour around pictures smaller than the crop: "black", as the authors did, or "mean".
        jitter: strength of random brightness, contrast and saturation, 0 (none) to 1.
        gamma: strength of a random exponent, 2 to the power of -gamma .. gamma; 0 is none.
        blur: largest deviation, in pixels, of a Gaussian blur on every second picture; 0 is none.
        focus: share of crops that are placed on a pixel of a class drawn evenly from the picture's
            classes, so that rare classes are seen more often.
        loss: "bootstrapped" (`BootstrappedCrossEntropy`) or "cross_entropy".
        min_pixels, threshold: K and the threshold of the bootstrapped loss.
        dice, lovasz: weights of two additional terms that weigh all classes of a picture alike
            (`RegionLoss`).
        balance: strength with which the pixels of rare classes weigh more in the cross entropy,
            from 0, not at all, to 1, all classes alike: a class's weight is its share of the
            labelled pixels of the training pictures, to the power of -balance; the mean over these
            pixels is 1.
        auxiliary: weight of the cross entropy of auxiliary heads on the decoder's coarser stages,
            which exist in training only.
        teacher: file of `fassd train` with a network of the same classes, whose probabilities are
            learnt as well; None for no teacher.
        distillation: weight of the divergence from the teacher's probabilities.
        optimizer: "sgd" (with `momentum`) or "adamw".
        learning_rate: initial learning rate; it falls to 0 by the schedule.
        schedule: "poly", (1 - step / steps) ** `power`, or "cosine", half a wave.
        momentum: momentum of SGD; the first beta of AdamW.
        weight_decay: weight decay on every parameter, biases and batch norms too, as the authors
            did.
        power: exponent of the poly schedule.
        warmup: number of steps over which the rate rises from near 0.
        clip: largest norm of the gradient; None does not clip.
        steps: number of optimizer steps.
        epochs: number of times that each picture is seen, from which `steps` is computed when the
            run begins; None uses `steps`.
        patience: number of validations without a better mean mIoU after which the run ends early;
            None never ends it early.
        batch: number of pictures per optimizer step, over all processes and micro-batches.
        accumulate: number of micro-batches per step and process, so that a large `batch` fits into
            a small card's memory. Batch norm sees one micro-batch.
        precision: "float32", "bfloat16" or "float16" (autocast; weights stay float32), or "auto":
            bfloat16 where the device computes in it, else float32.
        channels_last: True uses that memory layout for the convolutions.
        ema: decay of the moving average of the weights, which is then evaluated and saved; None for
            no average.
        statistics: number of batches from which the batch norm statistics of the averaged weights
            are recomputed before each validation; 0 averages the statistics like the weights.
        sync_bn: True computes batch norm over all processes instead of over each one's micro-batch;
            on GPUs only.
        accelerate: True uses fused modules: in training batch norm with its activation, on a CPU;
            in validation all of them.
        deterministic: True uses only algorithms that give the same bits each time; they are slower,
            and need more memory on a GPU. On a CPU a run gives the same bits without it.
        seed: seed of the weights, the order of pictures and their augmentation.
        workers: number of processes that read pictures; 0 reads them in the training process.
        threads: number of CPU threads of the training process, which affects rounding of sums; None
            is PyTorch's choice.
        log_every: number of steps between lines on the screen and checks of the loss.
        val_every: number of steps between validations; 0 validates at the end only.
        val_pictures: maximum number of pictures per validation, evenly spread; None takes all.
        save_every: number of steps between checkpoints.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    model: Text = "fassd_net"
    alpha: Positive = 2
    encoder: Literal["imagenet", "random"] = "imagenet"
    encoder_rate: Above0 = 1.0
    freeze: Count = 0
    init: Literal["kaiming", "xavier"] = "xavier"
    weights: Text | None = None
    shares: list[Above0] | None = None
    crop: Crop = (1024, 1024)
    stages: list[Stage] = []
    scale: Annotated[tuple[Above0, Above0], PAIR] = (0.5, 2.0)
    pad: Literal["black", "mean"] = "black"
    flip: Share = 0.5
    rotate: bool = False
    jitter: Share = 0.0
    gamma: AtLeast0 = 0.0
    blur: AtLeast0 = 0.0
    focus: Share = 0.0
    loss: Literal["bootstrapped", "cross_entropy"] = "bootstrapped"
    min_pixels: Positive = 4096
    threshold: AtLeast0 = 0.3
    dice: AtLeast0 = 0.0
    lovasz: AtLeast0 = 0.0
    balance: Share = 0.0
    auxiliary: AtLeast0 = 0.0
    teacher: Text | None = None
    distillation: AtLeast0 = 1.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Above0 = 0.02
    schedule: Literal["poly", "cosine"] = "poly"
    momentum: Decay = 0.9
    weight_decay: AtLeast0 = 5e-4
    power: AtLeast0 = 0.9
    warmup: Count = 0
    clip: Annotated[float, Field(gt=0, allow_inf_nan=True), FROM_TEXT] | None = None
    steps: Positive = 90_000
    epochs: Above0 | None = None
    patience: Positive | None = None
    batch: Positive = 16
    accumulate: Positive = 1
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = True
    ema: Decay | None = None
    statistics: Count = 0
    sync_bn: bool = False
    accelerate: bool = True
    deterministic: bool = False
    seed: Count = 0
    workers: Annotated[int, Field(ge=0, le=1024)] = 4
    threads: Positive | None = None
    log_every: Positive = 20
    val_every: Count = 500
    val_pictures: Positive | None = None
    save_every: Positive = 500

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        from fassd.models import get_variant

        get_variant(self.model)
        for name, holds, accepted in (
            ("scale", self.scale[0] <= self.scale[1], "two factors, smallest <= largest"),
            ("warmup", self.warmup < self.steps, f"below steps ({self.steps})"),
            (
                "stages",
                self._ends == sorted(set(self._ends)),
                "pairs of a step and a crop, steps ascending",
            ),
            ("patience", self.patience is None or self.val_every > 0, "None without val_every"),
            ("statistics", not self.statistics or self.ema is not None, "0 without ema"),
            (
                "batch",
                self.batch % self.accumulate == 0,
                f"a multiple of accumulate ({self.accumulate})",
            ),
        ):
            if not holds:
                raise ValueError(f"{name} must be {accepted}, got {shown(getattr(self, name))}")
        return self

    @property
    def _ends(self) -> list[int]:
        return [end for end, _ in self.stages]

    def replace(self, **changes: Any) -> Recipe:
        """A copy with these settings changed, given as in YAML.

        A warmup that does not fit into fewer `steps` is shortened, with a warning.
        """
        return _changed(self.to_dict(), changes, "the recipe")

    def in_steps(self, pictures: int) -> Recipe:
        """The recipe with its epochs converted to steps, for the number of pictures per epoch.

        Raises:
            RecipeError: as in `replace`.
        """
        if self.epochs is None:
            return self
        return self.replace(steps=max(1, round(self.epochs * pictures / self.batch)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in YAML and JSON."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def _changed(base: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of `base` with `changes`; its warmup is shortened if the steps are too few."""
    values = {**base, **changes}
    if changes.get("steps") is not None and base.get("epochs") is not None:
        values["epochs"] = changes.get("epochs")
    if changes.get("steps") is not None and changes.get("epochs") is not None:
        raise RecipeError(f"{where}: epochs take the place of steps; give one of them")
    steps, warmup = values.get("steps"), base.get("warmup")
    if "warmup" not in changes and type(steps) is int and warmup and 1 <= steps <= warmup:
        values["warmup"] = steps - 1
        warnings.warn(
            f"warmup shortened from {warmup} to {steps - 1} steps, as there are {steps} in all",
            stacklevel=3,
        )
    return from_dict(values, where)


def differences(run: Recipe, recipe: Recipe) -> list[str]:
    """The changes of `recipe` to a run's recipe, such as "steps 12 instead of 6".

    Raises:
        RecipeError: a setting that is not in `CHANGEABLE` differs.
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
    """Names of presets that `load_recipe` takes."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_recipe(source: str | os.PathLike[str]) -> Recipe:
    """Read a preset or a YAML file.

    A file holds settings of `Recipe` by name; omitted settings are those of `paper`, or of the
    preset that it names under `preset`.

    Raises:
        RecipeError: a preset or setting is unknown, or a value is not accepted.
        OSError: the file cannot be read.
    """
    presets = list_presets()
    path = PRESETS / f"{source}.yaml" if str(source) in presets else Path(source)
    if path.suffix not in (".yaml", ".yml"):
        raise RecipeError(
            f"a recipe must be a preset ({', '.join(presets)}) or a .yaml file, got {str(source)!r}"
        )
    values = _read(path)
    base = values.pop("preset", None)
    if base is not None and not (isinstance(base, str) and base in presets):
        raise RecipeError(f"{path}: preset must be one of {', '.join(presets)}, got {shown(base)}")
    return _changed(_read(PRESETS / f"{base}.yaml") if base else {}, values, str(path))


def recipe_of_run(file: Path) -> Recipe:
    """Read the recipe.yaml that a run left, which is complete.

    Raises:
        RecipeError, OSError: as in `load_recipe`.
    """
    return from_dict({**OF_EARLIER_RUNS, **_read(file)}, str(file))


def _read(path: Path) -> dict[str, Any]:
    """Read the settings in a file.

    Raises:
        RecipeError: the file holds no settings that can be read.
        OSError: the file cannot be read.
    """
    try:
        values = read_yaml(read_text(path))
    except ValueError as error:
        raise RecipeError(f"{path} is no YAML: {error}") from error
    if values is not None and not isinstance(values, dict):
        raise RecipeError(f"{path} must hold settings (name: value), got {type(values).__name__}")
    return values or {}


def from_dict(values: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain values; numbers may be text, as on the command line.

    Raises:
        RecipeError: a setting is unknown, or a value is not accepted.
    """
    known = Recipe.model_fields
    for key in values:
        if key not in known:
            # Only for typing errors: "class_weights" is something else than "weights".
            near = difflib.get_close_matches(shortened(str(key), 40), known, n=1, cutoff=0.8)
            guess = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise RecipeError(f"{where}: unknown setting {shown(key)}{guess}")
    try:
        return Recipe(**values)
    except ValidationError as error:
        raise RecipeError(f"{where}: {problem(error)}") from error
