"""Training: from a recipe and a data set to weights, through interruptions.

A run lives in a folder:

    recipe.yaml                the settings, complete
    log.csv, val.csv           loss per step; scores per validation
    tensorboard/               the same, and pictures
    pictures/                  validation scenes: input, ground truth, prediction
    last.safetensors           weights at the latest checkpoint (averaged ones if `ema`)
    best.safetensors           those of the best validation
    checkpoint*.safetensors    everything that resuming needs: the latest and the one before
    data.yaml                  where the data are
    .lock                      held while a process trains here
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from fassd.data.card import Card
from fassd.data.dataset import Sample, SegmentationDataset
from fassd.data.transforms import TrainTransform
from fassd.distributed import in_main, is_main, rank, sum_over_ranks, world_size
from fassd.evaluation.evaluate import Evaluation, evaluate
from fassd.io.images import ImageError, check_folder, replacing, write_image
from fassd.io.palette import colorize, labels_by_name
from fassd.io.panel import Tile, draw_panel
from fassd.models import NetworkInfo, create_model, load_checkpoint
from fassd.models.device import torch_threads
from fassd.models.info import info_of, remember
from fassd.models.zoo import weights_file
from fassd.training import state as files
from fassd.training.logs import CSVLog, TensorBoardLog
from fassd.training.loss import BootstrappedCrossEntropy, CrossEntropy, labelled_pictures
from fassd.training.precision import avoid_unsound_gradients, resolve_precision
from fassd.training.recipe import Recipe, RecipeError, differences, from_dict
from fassd.training.schedule import poly_learning_rate
from fassd.training.stop import StopRequest
from fassd.training.stream import MicroBatch, SampleStream, loader
from fassd.training.sync_norm import synchronize_batch_norm
from fassd_kernels.accelerate import swap

__all__ = ["DATA", "DivergedError", "Reporter", "StoppedError", "Trainer"]

Tensors = tuple[Tensor, ...] | list[Tensor]

DATA = "data.yaml"
ABOUT_DATA = "# What --resume trains on. Paths are absolute; --data and --root take their place."
BEFORE_CHECKPOINT = {"recipe.yaml", DATA, "log.csv", "val.csv", "tensorboard", files.LOCK}
SMALLEST_SCALE = 2.0**-14  # of the loss in float16; it begins at 2 ** 16
SHOWN_PICTURES = 3  # of the validation, drawn each time
MODEL, AVERAGE, SCALER = "model.", "average.", "scaler"


class DivergedError(RuntimeError):
    """The loss is no longer a number; the message tells where, and what is left."""


class StoppedError(RuntimeError):
    """Ctrl-C or SIGTERM: the run was saved and stopped."""


class _Abandoned(Exception):  # noqa: N818
    """Ctrl-C or SIGTERM in the middle of a validation."""


class Reporter(Protocol):
    """Who is told how a run goes; called in the main process only, but for `message`."""

    def started(self, recipe: Recipe, step: int) -> None: ...
    def stepped(self, step: int, loss: float, learning_rate: float) -> None: ...
    def validating(self, done: int, total: int) -> None: ...
    def validated(self, step: int, evaluation: Evaluation, best: bool) -> None: ...
    def message(self, text: str) -> None: ...


class _Done(NamedTuple):
    """A step that is not logged yet.

    Attributes:
        step: its number, from 1.
        loss: this process's share of it.
        labelled: number of pictures of all processes that have a labelled pixel.
        paths: this process's pictures.
        skipped: reasons why pictures were left out.
    """

    step: int
    loss: Tensor
    labelled: Tensor
    paths: list[Path]
    skipped: list[str]


@dataclass
class _Logs:
    """The open logs of the main process."""

    steps: CSVLog
    scores: CSVLog
    board: TensorBoardLog


class Trainer:
    """One training run.

    >>> Trainer(load_recipe("paper"), load_card("cityscapes", root), Path("runs/a")).run()

    Under torchrun, make it inside `fassd.distributed.process_group()` in each process.

    Args:
        recipe: the settings. When resuming, None takes those of the run; another recipe may differ
            from it in the settings of `fassd.training.recipe.CHANGEABLE`, which is reported and
            written into recipe.yaml.
        card: the data; it has splits "train" and, to validate on, "val" (else there is no best).
        folder: of the run; must be new or empty unless `resume`.
        device: where to train.
        resume: continue the run in `folder` from its latest checkpoint.
        reporter: who is told.

    Raises:
        RecipeError: a recipe that this machine or data cannot follow.
        StateError: nothing to resume from, or another run is in the folder.
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
        self.unscored = 0  # validations that failed
        self.changes: list[str] = []  # of settings, when the run was resumed
        self._stop = StopRequest(self._tell)
        tensors: dict[str, Tensor] = {}
        facts: dict[str, Any] = {}
        if resume:
            # The main process first, which sets damaged files aside.
            found = in_main(lambda: files.reclaim(folder)) or files.latest_state(folder)
            tensors, facts, troubles = found
            for trouble in troubles:
                self._tell(trouble)
            self.step, self.best, self.owed = facts["step"], facts["best"], facts["owed"]
            self.unscored = facts.get("unscored", 0)
            recipe = self._resumed(facts, recipe)
        else:
            _check_new(folder)
        if recipe is None:
            raise RecipeError("a new run needs a recipe")
        self.recipe = recipe.replace(precision=resolve_precision(recipe.precision, self.device))
        self._threads_before = facts.get("threads")
        self._changed = self.changes != facts.get("changes", [])
        self.train_set = SegmentationDataset(card, "train")
        self.val_set = SegmentationDataset(card, "val") if "val" in card.splits else None
        if resume:
            self._check_data(facts["data"])
        if self.recipe.batch % (world_size() * self.recipe.accumulate):
            raise RecipeError(
                f"batch must be a multiple of {world_size()} processes x accumulate "
                f"({self.recipe.accumulate}), got {self.recipe.batch}"
            )
        self._build(card.num_classes)
        if tensors:
            self._restore(tensors, facts)

    def _resumed(self, facts: dict[str, Any], recipe: Recipe | None) -> Recipe:
        """The run's recipe, with the changes that `recipe` makes to it.

        Raises:
            RecipeError: a change that a run cannot make on its way.
        """
        run = from_dict(facts["recipe"], str(self.folder))
        self.changes = list(facts.get("changes", ()))
        if recipe is None:
            return run
        recipe = recipe.replace(precision=resolve_precision(recipe.precision, self.device))
        changes = differences(run, recipe)
        if recipe.steps != run.steps and recipe.steps <= self.step:
            raise RecipeError(
                f"steps must be above {self.step}, which the run in {self.folder} has done, got "
                f"{recipe.steps}"
            )
        for change in changes:
            self.changes.append(f"after step {self.step}: {change}")
            if is_main():
                self._tell(self.changes[-1])
        return recipe

    def _data(self) -> dict[str, Any]:
        """What a resumed run needs to find again: every sample's place follows from it."""
        names = list(self.train_set.card.class_names)
        return {"classes": names, "pictures": len(self.train_set)}

    def _check_data(self, before: dict[str, Any]) -> None:
        for what, value in self._data().items():
            if value != before[what]:
                raise RecipeError(
                    f"the data of the run in {self.folder} had {what} {before[what]}, now {value}"
                )

    # ---------------------------------------------------------------------------------- building

    def _build(self, num_classes: int) -> None:
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        self.model = self._network(num_classes).to(self.device)
        if recipe.channels_last:
            # PyTorch's annotations have `memory_format` only together with a tensor or a dtype.
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = None if recipe.ema is None else _average(self.model, recipe.ema)
        if recipe.accelerate:
            # Swapped by hand, not by `accelerate`, which warns where there is nothing to swap.
            self.model = swap(self.model, "auto", {})
            if self.average is not None:
                self.average.module = swap(self.average.module, "auto", {})
        if recipe.sync_bn:
            self.model = synchronize_batch_norm(self.model, self.device)
        avoid_unsound_gradients(self.model, self.device, recipe.precision)
        self.parallel: nn.Module = self.model
        if world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=ids)
        self.optimizer = _optimizer(recipe, self.model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self.loss: BootstrappedCrossEntropy | CrossEntropy = (
            BootstrappedCrossEntropy(recipe.min_pixels, recipe.threshold)
            if recipe.loss == "bootstrapped"
            else CrossEntropy()
        )

    def _network(self, num_classes: int) -> nn.Module:
        recipe = self.recipe
        model = create_model(recipe.model, num_classes, recipe.alpha)
        start = recipe.weights or ("imagenet" if recipe.encoder == "imagenet" else None)
        if start is not None and not self.step:  # else the checkpoint has it all
            file = weights_file(recipe.model, start)
            self._tell(str(load_checkpoint(model, file, strict=recipe.weights is None)))
            _reorder_head(model, self.train_set.card.class_names)
        remember(model, NetworkInfo.of(recipe.model, recipe.alpha, self.train_set.card.classes))
        return model

    # ------------------------------------------------------------------------------------ running

    def run(self) -> Evaluation | None:
        """Train to the end of the recipe.

        Returns:
            The last validation; None without a val split, or if nothing in it could be scored.

        Raises:
            DivergedError: the loss, or a weight, is not finite.
            StoppedError: stopped by Ctrl-C or SIGTERM, after saving.
            OSError: the last checkpoint could not be written. Earlier failures are only told.
            StateError: another run is in the folder, or was since this trainer was made.
            RecipeError: micro-batches too small for batch norm.
        """
        with (
            self._stop.listening(),
            _deterministic(self.recipe.deterministic),
            torch_threads(self.recipe.threads),
            contextlib.ExitStack() as stack,
        ):
            logs = in_main(lambda: self._open_logs(stack))
            if logs is not None and self.reporter is not None:
                self.reporter.started(self.recipe, self.step)
            self._compare_threads()
            if self._changed:  # else the next --resume might know nothing of it
                self._save(final=True)
            return self._run(logs)

    def _run(self, logs: _Logs | None) -> Evaluation | None:
        recipe = self.recipe
        pending: list[_Done] = []
        result: Evaluation | None = None
        if self.owed:  # a validation was due where the run was cut off
            result = self._validate_and_save(logs)
        with contextlib.closing(self._batches()) as batches:
            for batch in batches:
                self._train_step(batch, pending)
                last = self.step == recipe.steps
                due = last or bool(recipe.val_every and self.step % recipe.val_every == 0)
                self.owed = due and self.val_set is not None
                save = due or self.step % recipe.save_every == 0
                if save or self.step % recipe.log_every == 0:
                    self._flush(pending, logs)
                stopped = self._stopping()
                if stopped:
                    self._flush(pending, logs)
                if save or stopped:  # before a validation, which may take long and fail
                    self._save(final=last or stopped)
                self._stop_here(stopped)
                if self.owed:
                    result = self._validate_and_save(logs)
        return result

    def _validate_and_save(self, logs: _Logs | None) -> Evaluation | None:
        result = self._validate(logs)
        stopped = self._stopping()
        self._save(final=stopped or self.step == self.recipe.steps)
        self._stop_here(stopped)
        return result

    def _stopping(self) -> bool:
        """Whether any process was asked to stop, which all of them agree on."""
        return bool(sum_over_ranks(torch.tensor(float(self._stop.made))) > 0)

    def _stop_here(self, stopped: bool) -> None:
        """Leave a run that was asked to stop, has been saved, and is not finished."""
        if stopped and (self.owed or self.step < self.recipe.steps):
            raise StoppedError(
                f"stopped after step {self.step}; saved in {self.folder}, go on with --resume"
            )

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

    def _train_step(self, batch: list[MicroBatch], pending: list[_Done]) -> None:
        """One optimizer step."""
        recipe = self.recipe
        rate = self._learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The mean goes over the labelled pictures of all processes and micro-batches, so that it
        # does not matter how a batch is shared out.
        own = torch.stack([labelled_pictures(part.labels) for part in batch]).sum()
        labelled = sum_over_ranks(own.to(self.device))
        pictures = labelled.clamp_min(1)
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
        pending.append(_Done(self.step, total, labelled, paths, skipped))

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
            logits = self._forward(images)
        share = self.loss.per_picture(logits, labels).sum() / pictures
        # DistributedDataParallel averages gradients over the processes; the share is to be summed.
        self.scaler.scale(share * world_size()).backward()
        return share.detach()

    def _forward(self, images: Tensor) -> Any:
        try:
            return self.parallel(images)
        except ValueError as error:
            count, _, height, width = images.shape
            if "value per channel" not in str(error):
                raise RecipeError(f"crop [{height}, {width}]: {error}") from error
            raise RecipeError(
                f"batch norm has a single value per channel to learn from ({error}): a micro-batch "
                f"is {count} x {height}x{width} pixels; take a larger batch, a smaller accumulate "
                "or a larger crop"
            ) from error

    # -------------------------------------------------------------------------------- writing down

    def _open_logs(self, stack: contextlib.ExitStack) -> _Logs:
        """Lock the folder and open what is written to; `stack` closes and unlocks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(files.locked(self.folder))
        # What another run may have done here since this trainer was made.
        if self.step == 0:
            _check_new(self.folder)
        elif files.latest_step(self.folder) > self.step:
            raise files.StateError(
                f"another run has gone on in {self.folder} since step {self.step}: resume anew"
            )
        data, root = self.train_set.card.address
        comments = [f"# {change}\n" for change in self.changes]
        texts = {
            "recipe.yaml": "".join(comments) + self.recipe.to_yaml(),
            DATA: f"{ABOUT_DATA}\n{yaml.safe_dump({'data': data, 'root': root})}",
        }
        for name, text in texts.items():
            with replacing(self.folder / name) as file:
                file.write(text.encode())
        names = [f"iou/{name}" for name in self.train_set.card.class_names]
        logs = _Logs(
            CSVLog(self.folder / "log.csv", ["step", "learning_rate", "loss"], self.step),
            CSVLog(self.folder / "val.csv", ["step", "miou", "pixel_accuracy", *names], self.step),
            TensorBoardLog(self.folder / "tensorboard", self.step),
        )
        stack.callback(self._guarded, "TensorBoard", logs.board.close)
        return logs

    def _compare_threads(self) -> None:
        before, now = self._threads_before, torch.get_num_threads()
        if self.device.type == "cpu" and is_main() and before not in (None, now):
            self._tell(
                f"the run had {before} CPU threads before, now {now}: its numbers differ in their "
                f"last bits from here on (--threads {before} avoids that)"
            )

    def _flush(self, pending: list[_Done], logs: _Logs | None) -> None:
        """Look at the losses since the last time: log them, and stop if one is no number."""
        if not pending:
            return
        for done in pending:
            for reason in done.skipped:
                self._tell(f"skipped: {reason}")
        losses = torch.stack([done.loss for done in pending])
        if world_size() > 1:
            dist.all_reduce(losses)
        values = losses.tolist()
        sound = [math.isfinite(value) for value in values]
        count = sound.index(False) if False in sound else len(values)
        self._log(pending[:count], values[:count], logs)
        if is_main() and not torch.stack([done.labelled for done in pending]).any():
            self._tell(
                f"steps {pending[0].step} to {pending[-1].step} have learnt nothing: every pixel "
                "of their pictures is ignored (fassd data check tells more of the labels)"
            )
        if count < len(values):
            raise DivergedError(self._autopsy(pending[count], values[count]))
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise DivergedError(
                f"gradients overflow float16 at any scale, up to step {self.step}: train in "
                "bfloat16 or float32"
            )
        pending.clear()

    def _log(self, pending: list[_Done], losses: list[float], logs: _Logs | None) -> None:
        if logs is None or not pending:
            return
        rows = [
            (done.step, f"{self._learning_rate(done.step - 1):.9g}", f"{loss:.9g}")
            for done, loss in zip(pending, losses, strict=True)
        ]
        step, mean = pending[-1].step, sum(losses) / len(losses)
        rate = self._learning_rate(step - 1)
        self._guarded("log.csv", logs.steps.write, rows)
        self._guarded("TensorBoard", logs.board.scalars, {"loss": mean, "lr": rate}, step)
        if self.reporter is not None:
            self.reporter.stepped(step, mean, rate)

    def _autopsy(self, done: _Done, loss: float) -> str:
        return (
            f"the loss of step {done.step} is {loss}, at a learning rate of "
            f"{self._learning_rate(done.step - 1):.3g} in {self.recipe.precision}; this process's "
            f"pictures: {', '.join(map(str, done.paths))}. Nothing of it was saved; "
            f"{self._left()}. A lower learning rate, a warmup or clip usually help"
        )

    def _left(self) -> str:
        if (self.folder / files.CHECKPOINT).exists():
            return f"--resume goes on from the checkpoint in {self.folder}"
        return f"there is no checkpoint in {self.folder} yet"

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and shipped: the average if there is one."""
        return self.model if self.average is None else self.average.module

    def _validate(self, logs: _Logs | None) -> Evaluation | None:
        """Score the network; None if there is no score, or a stop came, which leaves it owed."""
        if self.val_set is None:
            self.owed = False
            return None
        if world_size() > 1:
            # Each process has batch norm statistics of its own; those of the first are kept.
            for buffer in self.evaluated.buffers():
                dist.broadcast(buffer, 0)
        indices = _spread(len(self.val_set), self.recipe.val_pictures)
        own = indices[rank() :: world_size()]
        panel = _Panel(self.val_set.card, own[:: max(1, len(own) // SHOWN_PICTURES)])
        seen = 0

        def advance() -> None:
            nonlocal seen
            seen += 1
            if self._stop.made:
                raise _Abandoned
            if is_main() and self.reporter is not None:
                self.reporter.validating(seen, len(own))

        def on_sample(index: int, sample: Any, labels: npt.NDArray[np.uint8]) -> None:
            panel.add(index, sample, labels)
            advance()

        def on_bad(error: ImageError) -> None:
            self._tell(f"skipped: {error}")
            advance()

        try:
            evaluation = evaluate(
                self.evaluated, self.val_set, indices=indices, on_sample=on_sample, on_bad=on_bad
            )
        except (_Abandoned, ValueError, RuntimeError, OSError, MemoryError) as error:
            # In all processes, as all hear of each other's.
            if not self._stopping():
                self.owed = False
                self.unscored += 1
                if is_main():
                    self._tell(
                        f"no score: {error} (step {self.step}; so far {self.unscored} of the run's "
                        "validations failed)"
                    )
            return None
        self.owed = False
        if logs is not None:
            self._write_scores(logs, evaluation, panel)
            best = self._keep_best(evaluation.scores.miou)
            if self.reporter is not None:
                self.reporter.validated(self.step, evaluation, best)
        return evaluation

    def _keep_best(self, miou: float) -> bool:
        """Keep the weights if their score is the best so far; whether they were kept."""
        before = self.best
        if not miou > before:
            return False
        self.best = miou
        kept = self._guarded("best.safetensors", self._save_weights, "best.safetensors")
        if not kept:
            self.best = before
        return kept

    def _write_scores(self, logs: _Logs, evaluation: Evaluation, panel: _Panel) -> None:
        scores = evaluation.scores
        figures = [scores.miou, scores.pixel_accuracy]
        row = [self.step, *(f"{figure:.9g}" for figure in (*figures, *scores.iou))]
        self._guarded("val.csv", logs.scores.write, [row])
        names = ("val/miou", "val/pixel_accuracy")
        self._guarded(
            "TensorBoard",
            logs.board.scalars,
            dict(zip(names, figures, strict=True)),
            self.step,
        )
        image = panel.draw()
        if image is not None:
            path = self.folder / "pictures" / f"step-{self.step:06d}.jpg"
            self._guarded(str(path), write_image, path, image)
            self._guarded("TensorBoard", logs.board.picture, "val/predictions", image, self.step)
        self._guarded("TensorBoard", logs.board.flush)

    # --------------------------------------------------------------------------------- checkpoints

    def _save(self, final: bool) -> None:
        """Write checkpoint and weights; the failure of a final one is an error.

        Raises:
            DivergedError: a weight is not finite; what was saved before stays.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise DivergedError(
                f"step {self.step} left weights that are not finite. Nothing of it was saved; "
                f"{self._left()}. A lower learning rate, a warmup or clip usually help"
            )
        if final:  # in all processes before any of them leaves, as torchrun then ends the others
            in_main(self._save_all)
        elif is_main():
            self._guarded("the checkpoint", self._save_state)
            self._guarded("last.safetensors", self._save_weights, "last.safetensors")

    def _save_all(self) -> None:
        troubles = [
            _trouble("the checkpoint", self._save_state),
            _trouble("last.safetensors", self._save_weights, "last.safetensors"),
        ]
        if any(troubles):
            raise OSError(f"step {self.step}: {'; '.join(filter(None, troubles))}. {self._left()}")

    def _guarded(self, what: str, write: Any, *arguments: Any) -> bool:
        """Whether it was written: hours are not given up because a disk is full just now."""
        trouble = _trouble(what, write, *arguments)
        if trouble is not None:
            self._tell(f"{trouble}; what was there stays, training goes on")
        return trouble is None

    def _facts(self) -> dict[str, Any]:
        info = info_of(self.evaluated)
        return {
            "step": self.step,
            "best": self.best,
            "owed": self.owed,
            "unscored": self.unscored,
            "changes": self.changes,
            "threads": torch.get_num_threads(),
            "recipe": self.recipe.to_dict(),
            "data": self._data(),
            "network": info and info.to_json(),
        }

    def _save_weights(self, name: str) -> None:
        files.save_weights(self.folder / name, self.evaluated, self._facts())

    def _save_state(self) -> None:
        tensors = {f"{MODEL}{key}": value for key, value in self.model.state_dict().items()}
        if self.average is not None:
            for key, value in self.average.state_dict().items():
                tensors[f"{AVERAGE}{key}"] = value
        for key, value in files.flatten_optimizer(self.optimizer).items():
            tensors[f"{files.OPTIMIZER}{key}"] = value
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
        files.restore_optimizer(self.optimizer, part(files.OPTIMIZER))
        if SCALER in facts:
            self.scaler.load_state_dict(facts[SCALER])

    def _tell(self, text: str) -> None:
        if self.reporter is not None:
            self.reporter.message(text if world_size() == 1 else f"[process {rank()}] {text}")


# ------------------------------------------------------------------------------------------- parts


def _check_new(folder: Path) -> None:
    """A run may begin in a new folder, or in one that a run left before its first checkpoint."""
    check_folder(folder)
    if folder.exists() and {path.name for path in folder.iterdir()} - BEFORE_CHECKPOINT:
        raise FileExistsError(
            f"{folder} is not empty: --resume goes on with the run in it, another --output begins "
            "a new one"
        )


def _trouble(what: str, write: Any, *arguments: Any) -> str | None:
    """Why `what` could not be written, or None."""
    try:
        write(*arguments)
    except OSError as error:
        return f"could not write {what}: {error}"
    return None


def _reorder_head(model: Any, wanted: list[str]) -> None:
    """Put the head's channels into another order of the classes, if weights gave it these."""
    try:
        labels = labels_by_name(model, wanted)
    except ValueError:  # other classes, which begin with what the head has
        return
    if labels is not None:
        for parameter in model.finalConv.parameters():
            parameter.data = parameter.data[np.argsort(labels)]


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
def _deterministic(wanted: bool) -> Iterator[None]:
    """PyTorch's deterministic algorithms inside the block, if they are wanted."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        # cuBLAS asks for it before its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        if wanted:
            torch.use_deterministic_algorithms(before[0])
            torch.backends.cudnn.benchmark = before[1]
