"""Training: from a recipe and a data set to weights, through interruptions.

A run lives in a folder:

    recipe.yaml                the settings, complete
    log.csv, val.csv           loss per step; scores per validation
    tensorboard/               the same, and pictures
    pictures/                  validation scenes: input, ground truth, prediction
    last.safetensors           weights at the latest checkpoint (averaged ones if `ema`)
    best.safetensors           those of the best validation
    checkpoint*.safetensors    everything that resuming needs: the latest and the one before
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from fassd.data.card import Card
from fassd.data.dataset import Sample, SegmentationDataset
from fassd.data.transforms import TrainTransform
from fassd.images import check_folder, replacing, write_image
from fassd.models import create_model, load_checkpoint
from fassd.palette import colorize
from fassd.panel import Tile, draw_panel
from fassd.training import state as files
from fassd.training.distributed import is_main, rank, world_size
from fassd.training.evaluation import Evaluation, evaluate
from fassd.training.logs import CSVLog, TensorBoardLog
from fassd.training.loss import BootstrappedCrossEntropy, CrossEntropy, labelled_pictures
from fassd.training.precision import avoid_unsound_gradients, resolve_precision
from fassd.training.recipe import Recipe, RecipeError, from_dict
from fassd.training.schedule import poly_learning_rate
from fassd.training.stream import MicroBatch, SampleStream, loader
from fassd.training.sync_norm import synchronize_batch_norm

__all__ = ["DivergedError", "Reporter", "StoppedError", "Trainer"]

Tensors = tuple[Tensor, ...] | list[Tensor]

SHOWN_PICTURES = 3  # of the validation, drawn each time
MODEL, AVERAGE, OPTIMIZER, SCALER = "model.", "average.", "optimizer.", "scaler"


class DivergedError(RuntimeError):
    """The loss is no longer a number; the message tells where, and what is left."""


class StoppedError(RuntimeError):
    """Ctrl-C or SIGTERM: the run was saved and stopped."""


class Reporter(Protocol):
    """Who is told how a run goes; called in the main process only, but for `message`."""

    def started(self, recipe: Recipe, step: int) -> None: ...
    def stepped(self, step: int, loss: float, learning_rate: float) -> None: ...
    def validating(self, done: int, total: int) -> None: ...
    def validated(self, step: int, evaluation: Evaluation, best: bool) -> None: ...
    def message(self, text: str) -> None: ...


@dataclass
class _Logs:
    """The open logs of the main process."""

    steps: CSVLog
    scores: CSVLog
    board: TensorBoardLog


class Trainer:
    """One training run.

    >>> Trainer(load_recipe("paper"), load_card("cityscapes", root), Path("runs/a")).run()

    Under torchrun, make it inside `fassd.training.distributed.process_group()` in each process.

    Args:
        recipe: the settings. When resuming, those of the run are used, and `recipe` must be None.
        card: the data; it has splits "train" and, to validate on, "val" (else there is no best).
        folder: of the run; must be new or empty unless `resume`.
        device: where to train.
        resume: continue the run in `folder` from its latest checkpoint.
        reporter: who is told.

    Raises:
        RecipeError: a recipe that this machine or data cannot follow.
        StateError: nothing to resume from.
        FileExistsError: the folder holds a run already.
        CardError: there is nothing to train on.
    """

    def __init__(
        self,
        recipe: Recipe | None,
        card: Card,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        resume: bool = False,
        reporter: Reporter | None = None,
    ) -> None:
        self.folder = folder
        self.device = torch.device(device)
        self.reporter = reporter
        self.step = 0  # optimizer steps done
        self.best = -math.inf
        self.owed = False  # whether a validation of this step is still to come
        tensors: dict[str, Tensor] = {}
        facts: dict[str, Any] = {}
        if resume:
            tensors, facts, troubles = files.latest_state(folder)
            for trouble in troubles:
                self._tell(trouble)
            recipe = from_dict(facts["recipe"], str(folder))
            self.step, self.best, self.owed = facts["step"], facts["best"], facts["owed"]
        else:
            _check_new(folder)
        if recipe is None:
            raise RecipeError("a new run needs a recipe")
        self.recipe = recipe.replace(precision=resolve_precision(recipe.precision, self.device))
        self.train_set = SegmentationDataset(card, "train")
        self.val_set = SegmentationDataset(card, "val") if "val" in card.splits else None
        if self.recipe.batch % (world_size() * self.recipe.accumulate):
            raise RecipeError(
                f"batch must be a multiple of {world_size()} processes x accumulate "
                f"({self.recipe.accumulate}), got {self.recipe.batch}"
            )
        self._build(card.num_classes)
        if tensors:
            self._restore(tensors, facts)

    # ---------------------------------------------------------------------------------- building

    def _build(self, num_classes: int) -> None:
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        if recipe.deterministic:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        self.model = self._network(num_classes).to(self.device)
        self.average = None if recipe.ema is None else _average(self.model, recipe.ema)
        if recipe.accelerate:
            # Swapped by hand, not by `accelerate`, which warns where there is nothing to swap.
            self.model = _with_fused_modules(self.model)
            if self.average is not None:
                self.average.module = _with_fused_modules(self.average.module)
        if recipe.sync_bn:
            self.model = synchronize_batch_norm(self.model, self.device)
        if recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        avoid_unsound_gradients(self.model, self.device, recipe.precision)
        self.parallel: nn.Module = self.model
        if dist.is_initialized():
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=ids)
        self.optimizer = _optimizer(recipe, self.model)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=recipe.precision == "float16" and self.device.type == "cuda"
        )
        self.loss: BootstrappedCrossEntropy | CrossEntropy = (
            BootstrappedCrossEntropy(recipe.min_pixels, recipe.threshold)
            if recipe.loss == "bootstrapped"
            else CrossEntropy()
        )

    def _network(self, num_classes: int) -> nn.Module:
        recipe = self.recipe
        start = "imagenet" if recipe.encoder == "imagenet" and recipe.weights is None else None
        if start is not None and self.step:
            start = None  # the checkpoint has it all
        model = create_model(recipe.model, num_classes, recipe.alpha, weights=start)
        if recipe.weights is not None and not self.step:
            self._tell(str(load_checkpoint(model, recipe.weights, strict=False)))
        return model

    # ------------------------------------------------------------------------------------ running

    def run(self) -> Evaluation | None:
        """Train to the end of the recipe.

        Returns:
            The last validation; None without a val split.

        Raises:
            DivergedError: the loss is not finite.
            StoppedError: stopped by Ctrl-C or SIGTERM, after saving.
            OSError: the last checkpoint could not be written. Earlier failures are only told.
        """
        recipe = self.recipe
        logs = self._open_logs() if is_main() else None
        if is_main() and self.reporter is not None:
            self.reporter.started(recipe, self.step)
        pending: list[tuple[int, Tensor, list[Path], list[str]]] = []
        result: Evaluation | None = None
        if self.owed:  # stopped where a validation was due
            result = self._validate(logs)
            self._save(final=self.step == recipe.steps)
        with _stop_signals() as stop, contextlib.closing(self._batches()) as batches:
            for batch in batches:
                stopped = self._train_step(batch, pending, stop)
                last = self.step == recipe.steps
                due = last or bool(recipe.val_every and self.step % recipe.val_every == 0)
                save = due or stopped or self.step % recipe.save_every == 0
                if save or self.step % recipe.log_every == 0:
                    self._flush(pending, logs)
                if due and not stopped:
                    result = self._validate(logs)
                self.owed = due and stopped
                if save:
                    self._save(final=last or stopped)
                if stopped:
                    raise StoppedError(
                        f"stopped after step {self.step}; saved in {self.folder}, "
                        "go on with --resume"
                    )
        if logs is not None:
            logs.board.close()
        return result

    def _batches(self) -> Generator[list[MicroBatch], None, None]:
        recipe = self.recipe
        transform = TrainTransform(recipe.crop, recipe.scale, recipe.flip, recipe.jitter)
        yield from loader(
            SampleStream(self.train_set, transform, recipe.seed),
            range(self.step, recipe.steps),
            recipe.batch,
            recipe.accumulate,
            rank=rank(),
            world_size=world_size(),
            workers=recipe.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _train_step(
        self,
        batch: list[MicroBatch],
        pending: list[tuple[int, Tensor, list[Path], list[str]]],
        stop: threading.Event,
    ) -> bool:
        """One optimizer step; whether the run is to stop, which all processes agree on."""
        recipe = self.recipe
        rate = self._learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The mean goes over the labelled pictures of all processes and micro-batches, so that it
        # does not matter how a batch is shared out.
        shared = torch.stack(
            [
                torch.stack([labelled_pictures(part.labels) for part in batch]).sum(),
                torch.tensor(float(stop.is_set())),
            ]
        ).to(self.device)
        if dist.is_initialized():
            dist.all_reduce(shared)
        pictures, stopped = shared[0].clamp_min(1), bool(shared[1] > 0)
        self.parallel.train()
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(batch, start=1):
            with self._accumulating(number < len(batch)):
                total += self._backward(part, pictures)
        if recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        paths = [path for part in batch for path in part.paths]
        skipped = [reason for part in batch for reason in part.skipped]
        pending.append((self.step, total, paths, skipped))
        return stopped

    def _learning_rate(self, step: int) -> float:
        recipe = self.recipe
        return poly_learning_rate(
            step, recipe.learning_rate, recipe.steps, recipe.power, recipe.warmup
        )

    def _accumulating(self, more: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged with the last micro-batch only."""
        if more and isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return contextlib.nullcontext()

    def _backward(self, part: MicroBatch, pictures: Tensor) -> Tensor:
        """Add the gradients of a micro-batch; its share of the loss."""
        images = part.images.to(self.device, non_blocking=True)
        labels = part.labels.to(self.device, non_blocking=True)
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        half = self.recipe.precision != "float32"
        dtype = getattr(torch, self.recipe.precision)
        with torch.autocast(self.device.type, dtype if half else None, enabled=half):
            logits = self.parallel(images)
        share = self.loss.per_picture(logits, labels).sum() / pictures
        # DistributedDataParallel averages gradients over the processes; the share is to be summed.
        self.scaler.scale(share * world_size()).backward()
        return share.detach()

    # -------------------------------------------------------------------------------- writing down

    def _open_logs(self) -> _Logs:
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / "recipe.yaml") as file:
            file.write(self.recipe.to_yaml().encode())
        names = self.train_set.card.class_names
        return _Logs(
            CSVLog(self.folder / "log.csv", ["step", "learning_rate", "loss"], self.step),
            CSVLog(self.folder / "val.csv", ["step", "miou", "pixel_accuracy", *names], self.step),
            TensorBoardLog(self.folder / "tensorboard", self.step),
        )

    def _flush(
        self, pending: list[tuple[int, Tensor, list[Path], list[str]]], logs: _Logs | None
    ) -> None:
        """Look at the losses since the last time: stop if one is no number, else log them."""
        if not pending:
            return
        for _, _, _, skipped in pending:
            for reason in skipped:
                self._tell(f"skipped: {reason}")
        losses = torch.stack([loss for _, loss, _, _ in pending])
        if dist.is_initialized():
            dist.all_reduce(losses)
        rows = []
        for (step, _, paths, _), loss in zip(pending, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise DivergedError(self._autopsy(step, loss, paths))
            rows.append((step, f"{self._learning_rate(step - 1):.9g}", f"{loss:.9g}"))
        pending.clear()
        if logs is None:
            return
        logs.steps.write(rows)
        rate = self._learning_rate(self.step - 1)
        logs.board.scalars({"train/loss": losses.mean().item(), "train/lr": rate}, self.step)
        if self.reporter is not None:
            self.reporter.stepped(self.step, losses.mean().item(), rate)

    def _autopsy(self, step: int, loss: float, paths: list[Path]) -> str:
        return (
            f"the loss of step {step} is {loss}, at a learning rate of "
            f"{self._learning_rate(step - 1):.3g} in {self.recipe.precision}; this process's "
            f"pictures: {', '.join(map(str, paths))}. Nothing of it was saved: {self.folder} holds "
            "the checkpoint before. A lower learning rate, a warmup or clip usually help"
        )

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and shipped: the average if there is one."""
        return self.model if self.average is None else self.average.module

    def _validate(self, logs: _Logs | None) -> Evaluation | None:
        if self.val_set is None:
            return None
        indices = _spread(len(self.val_set), self.recipe.val_pictures)
        panel = _Panel(self.val_set.card, indices[:: max(1, len(indices) // SHOWN_PICTURES)])
        done = 0

        def on_sample(index: int, sample: Any, labels: npt.NDArray[np.uint8]) -> None:
            nonlocal done
            done += 1
            panel.add(index, sample, labels)
            if is_main() and self.reporter is not None:
                self.reporter.validating(done * world_size(), len(indices))

        self.owed = False
        evaluation = evaluate(
            self.evaluated,
            self.val_set,
            indices=indices,
            on_sample=on_sample,
            on_bad=lambda error: self._tell(f"skipped: {error}"),
        )
        best = evaluation.scores.miou > self.best
        self.best = max(self.best, evaluation.scores.miou)
        if logs is not None:
            self._write_scores(logs, evaluation, panel)
            if best:
                self._guarded("best.safetensors", self._save_weights, "best.safetensors")
            if self.reporter is not None:
                self.reporter.validated(self.step, evaluation, best)
        return evaluation

    def _write_scores(self, logs: _Logs, evaluation: Evaluation, panel: _Panel) -> None:
        scores = evaluation.scores
        figures = [scores.miou, scores.pixel_accuracy, *scores.iou]
        logs.scores.write([[self.step, *(f"{figure:.9g}" for figure in figures)]])
        logs.board.scalars(
            {"val/miou": scores.miou, "val/pixel_accuracy": scores.pixel_accuracy}, self.step
        )
        image = panel.draw()
        if image is not None:
            write_image(self.folder / "pictures" / f"step-{self.step:06d}.jpg", image)
            logs.board.picture("val/predictions", image, self.step)

    # --------------------------------------------------------------------------------- checkpoints

    def _save(self, final: bool) -> None:
        if not is_main():
            return
        if final:
            self._save_weights("last.safetensors")
            self._save_state()
            return
        self._guarded("last.safetensors", self._save_weights, "last.safetensors")
        self._guarded("the checkpoint", self._save_state)

    def _guarded(self, what: str, write: Any, *arguments: Any) -> None:
        """Hours of work are not given up for a disk that is full just now."""
        try:
            write(*arguments)
        except OSError as error:
            self._tell(f"could not write {what}: {error}; the earlier one stays, training goes on")

    def _facts(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best": self.best,
            "owed": self.owed,
            "recipe": self.recipe.to_dict(),
        }

    def _save_weights(self, name: str) -> None:
        files.save_weights(self.folder / name, self.evaluated, self._facts())

    def _save_state(self) -> None:
        tensors = {f"{MODEL}{key}": value for key, value in self.model.state_dict().items()}
        if self.average is not None:
            for key, value in self.average.state_dict().items():
                tensors[f"{AVERAGE}{key}"] = value
        for key, value in files.flatten_optimizer(self.optimizer).items():
            tensors[f"{OPTIMIZER}{key}"] = value
        scale = {SCALER: self.scaler.state_dict()} if self.scaler.is_enabled() else {}
        files.save_state(self.folder, tensors, {**self._facts(), **scale})

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {
                key[len(prefix) :]: value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }

        self.model.load_state_dict(part(MODEL))
        if self.average is not None:
            self.average.load_state_dict(part(AVERAGE))
        files.restore_optimizer(self.optimizer, part(OPTIMIZER))
        if SCALER in facts:
            self.scaler.load_state_dict(facts[SCALER])

    def _tell(self, text: str) -> None:
        if self.reporter is not None:
            self.reporter.message(text if world_size() == 1 else f"[process {rank()}] {text}")


# ------------------------------------------------------------------------------------------- parts


def _check_new(folder: Path) -> None:
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty: --resume goes on with the run in it, another --output begins "
            "a new one"
        )


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=recipe.momentum, **settings)
    return torch.optim.AdamW(model.parameters(), betas=(recipe.momentum, 0.999), **settings)


def _average(model: nn.Module, decay: float) -> AveragedModel:
    """A moving average of weights and batch norm statistics, younger at the beginning."""

    def blend(averages: Tensors, currents: Tensors, count: Tensor | int) -> None:
        steps = float(count)
        share = 1 - min(decay, (1 + steps) / (10 + steps))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, share)
            else:
                average.copy_(current)

    return AveragedModel(model, multi_avg_fn=torch.no_grad()(blend), use_buffers=True)


def _with_fused_modules(model: nn.Module) -> nn.Module:
    """Fused modules in `model`'s own place; without them where the package is missing."""
    try:
        from fassd_kernels.accelerate import swap
    except ImportError:
        return model
    return swap(model, "auto", {})


def _spread(length: int, most: int | None) -> list[int]:
    """At most so many of 0 .. length - 1, evenly spread."""
    count = length if most is None else min(most, length)
    return [number * length // count for number in range(count)]


class _Panel:
    """A few validation scenes, one per row: input, ground truth, prediction."""

    def __init__(self, card: Card, indices: list[int]) -> None:
        self.card = card
        self.indices = indices[:SHOWN_PICTURES]
        self.rows: dict[int, tuple[Sample, npt.NDArray[np.uint8]]] = {}

    def add(self, index: int, sample: Any, labels: npt.NDArray[np.uint8]) -> None:
        if index in self.indices and is_main():
            self.rows[index] = (sample, labels)

    def draw(self) -> npt.NDArray[np.uint8] | None:
        """(H, W, 3) uint8 RGB, or None if this process saw none of them."""
        if not self.rows:
            return None
        colors = self.card.palette
        rows = [
            [
                Tile(sample.image),
                Tile(colorize(sample.labels, colors)),
                Tile(colorize(labels, colors)),
            ]
            for _, (sample, labels) in sorted(self.rows.items())
        ]
        return draw_panel(["input", "ground truth", "prediction"], rows, self.card.classes)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one acts as ever."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
