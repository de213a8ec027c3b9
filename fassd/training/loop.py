"""Training: from a recipe and data sets to weights, through interruptions.

A run's folder contains:

    recipe.yaml                the settings, complete
    log.csv, val.csv           loss per step; scores per validation (val.2.csv of the second data)
    tensorboard/               the same, and pictures
    pictures/                  validation scenes: input, ground truth, prediction
    last.safetensors           weights at the latest checkpoint (averaged ones if `ema`)
    best.safetensors           weights of the best validation
    checkpoint*.safetensors    everything needed to resume: the latest and the one before
    data.yaml                  addresses of the data
    .lock                      held while a process trains here
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fassd.data.card import Card
from fassd.data.dataset import SegmentationDataset
from fassd.data.groups import label_space
from fassd.distributed import in_main, is_main, rank, sum_over_ranks, world_size
from fassd.evaluation.evaluate import Evaluation
from fassd.io.files import locked
from fassd.io.images import ImageError
from fassd.models.device import torch_threads
from fassd.models.info import info_of
from fassd.models.preprocess import preprocessing_of
from fassd.training import state as files
from fassd.training.balance import class_weights
from fassd.training.learner import WEIGHTS, Learner
from fassd.training.logs import Done, Reporter, RunLogs
from fassd.training.precision import deterministic, resolve_precision
from fassd.training.recipe import (
    OF_EARLIER_RUNS,
    Recipe,
    RecipeError,
    differences,
    from_dict,
)
from fassd.training.stop import StopRequest
from fassd.training.stream import MicroBatch, SampleStream, loader
from fassd.training.validation import validate

ADVICE = "A lower learning rate, a warmup or clip usually help"


class DivergedError(RuntimeError):
    """The loss is not a number any more; the message says where, and what was saved."""


class StoppedError(RuntimeError):
    """The run was saved and stopped after Ctrl-C or SIGTERM."""


class _Abandoned(Exception):  # noqa: N818
    """A validation was interrupted by Ctrl-C or SIGTERM."""


class Trainer:
    """One training run.

    >>> Trainer(load_recipe("paper"), load_card("cityscapes", root), Path("runs/a")).run()

    Under torchrun, create it inside `fassd.distributed.process_group()` in each process.

    Args:
        recipe: settings of the run. When resuming, None keeps those of the run; another recipe may
            differ from it in the settings of `fassd.training.recipe.CHANGEABLE`, which is reported
            and written into recipe.yaml.
        cards: one or several data sets; each has a split "train" and, to validate on, "val"
            (without it there is no best). The network's classes are those of the first, which must
            contain those of the others (`fassd.data.groups`); the best weights have the best mean
            of the mIoUs.
        folder: folder of the run; must be new or empty unless `resume`.
        device: device to train on.
        resume: True continues the run in `folder` from its latest checkpoint.
        reporter: listener that is told of progress.

    Attributes:
        learner: the network and everything that changes while it learns.
        step: number of optimizer steps done.
        evaluations: last validation of each data set with a val split; empty if it failed.

    Raises:
        RecipeError: this machine or this data cannot follow the recipe.
        StateError: there is nothing to resume from; InUseError: another run uses the folder.
        FileExistsError: the folder holds a run already.
        CardError: there is nothing to train on, or the cards' classes do not match.
    """

    def __init__(
        self,
        recipe: Recipe | None,
        cards: Card | Sequence[Card],
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        resume: bool = False,
        reporter: Reporter | None = None,
    ) -> None:
        self.folder = folder
        self.device = torch.device(device)
        self.reporter = reporter
        self.step = 0  # number of optimizer steps done
        self.best = -math.inf
        self.validation_pending = False  # the validation of this step is still due
        self.unscored = 0  # number of validations that failed
        self.stale = 0  # number of validations since the best one, in the main process
        self.changes: list[str] = []  # changes of settings, when the run was resumed
        self._stop = StopRequest(self._tell)
        tensors: dict[str, Tensor] = {}
        facts: dict[str, Any] = {}
        if resume:
            # The main process goes first, because it sets damaged files aside.
            found = in_main(lambda: files.reclaim(folder)) or files.latest_state(folder)
            tensors, facts, troubles = found
            for trouble in troubles:
                self._tell(trouble)
            self.step, self.best = facts["step"], facts["best"]
            self.validation_pending = facts["owed"]
            self.unscored = facts.get("unscored", 0)
            self.stale = facts.get("stale", 0)
        else:
            files.check_new(folder)
        cards = (cards,) if isinstance(cards, Card) else cards
        self.space = label_space(cards)
        self.train_sets = [SegmentationDataset(card, "train") for card in self.space.cards]
        self.val_sets = [SegmentationDataset(card, "val") for card in cards if "val" in card.splits]
        recipe = recipe and self._in_steps(recipe)
        recipe = self._resumed(facts, recipe) if resume else recipe
        if recipe is None:
            raise RecipeError("a new run needs a recipe")
        self.recipe = recipe.replace(precision=resolve_precision(recipe.precision, self.device))
        self._threads_before = facts.get("threads")
        self._changed = self.changes != facts.get("changes", [])
        if self.recipe.patience is not None and not self.val_sets:
            raise RecipeError("patience needs a split val, and no data set has one")
        self.evaluations: list[Evaluation] = []
        shares = self.recipe.shares
        if shares is not None and len(shares) != len(cards):
            raise RecipeError(
                f"shares must be one number for each of the {len(cards)} data sets, got {shares}"
            )
        if resume:
            files.check_data(folder, facts["data"], self.space, self.train_sets)
        if self.recipe.batch % (world_size() * self.recipe.accumulate):
            raise RecipeError(
                f"batch must be a multiple of {world_size()} processes x accumulate "
                f"({self.recipe.accumulate}), got {self.recipe.batch}"
            )
        weights = facts.get(WEIGHTS) or class_weights(
            self.recipe, self.space, self.train_sets, self._tell
        )
        self.learner = Learner(
            self.recipe, self.space, self.device, weights, start=not self.step, tell=self._tell
        )
        if tensors:
            self.learner.restore(tensors, facts)

    def _in_steps(self, recipe: Recipe) -> Recipe:
        """The recipe with its epochs converted to steps, if it has any."""
        pictures = sum(map(len, self.train_sets))
        if recipe.epochs is not None and is_main():
            steps = recipe.in_steps(pictures).steps
            self._tell(f"{recipe.epochs:g} epochs of {pictures} pictures are {steps} steps")
        return recipe.in_steps(pictures)

    def _resumed(self, facts: dict[str, Any], recipe: Recipe | None) -> Recipe:
        """The run's recipe with the changes of `recipe`.

        Raises:
            RecipeError: a setting changes that must stay the same during a run.
        """
        run = from_dict({**OF_EARLIER_RUNS, **facts["recipe"]}, str(self.folder))
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

    # ------------------------------------------------------------------------------------ running

    def run(self) -> Evaluation | None:
        """Train to the end of the recipe.

        Returns:
            The last validation of the first data set with a val split (`evaluations` has all of
            them); None if there is no such split, or if nothing in it could be scored.

        Raises:
            DivergedError: the loss, or a weight, is not finite.
            StoppedError: the run was stopped by Ctrl-C or SIGTERM, after saving.
            OSError: the last checkpoint could not be written. Earlier failures are only reported.
            InUseError, StateError: another run is in the folder, or was since this was made.
            RecipeError: micro-batches too small for batch norm.
        """
        with (
            self._stop.listening(),
            deterministic(self.recipe.deterministic),
            torch_threads(self.recipe.threads),
            contextlib.ExitStack() as stack,
        ):
            logs = in_main(lambda: self._open_logs(stack))
            if logs is not None and self.reporter is not None:
                self.reporter.started(self.recipe, self.step)
            self._compare_threads()
            if self._changed:  # otherwise the next --resume might not know of it
                self._save(final=True)
            self._run(logs)
        return self.evaluations[0] if self.evaluations else None

    def _run(self, logs: RunLogs | None) -> None:
        recipe = self.recipe
        pending: list[Done] = []
        if self.validation_pending:  # a validation was due when the run was interrupted
            self._validate_and_save(logs)
        if self._gave_up():
            return
        with contextlib.closing(self._batches()) as batches, self._kept(pending, logs):
            for batch in batches:
                self._train_step(batch, pending)
                last = self.step == recipe.steps
                due = last or bool(recipe.val_every and self.step % recipe.val_every == 0)
                self.validation_pending = due and bool(self.val_sets)
                save = due or self.step % recipe.save_every == 0
                if save or self.step % recipe.log_every == 0:
                    self._flush(pending, logs)
                stopped = self._stopping()
                if stopped:
                    self._flush(pending, logs)
                if save or stopped:  # before a validation, which may take long and may fail
                    self._save(final=last or stopped)
                self._stop_here(stopped)
                if self.validation_pending:
                    self._validate_and_save(logs)
                    if self._gave_up():
                        return

    def _gave_up(self) -> bool:
        """True if the run ends early; all processes agree."""
        patience = self.recipe.patience
        over = patience is not None and self.stale >= patience and self.step < self.recipe.steps
        over = over and is_main()  # after --resume each process has the count
        if not sum_over_ranks(torch.tensor(float(over))) > 0:
            return False
        if is_main():
            self._tell(f"no better score in {self.stale} validations: the run ends, early")
        return True

    @contextlib.contextmanager
    def _kept(self, pending: list[Done], logs: RunLogs | None) -> Iterator[None]:
        """Save what was learnt if pictures can no longer be read, for instance from a lost disk."""
        try:
            yield
        except ImageError as error:
            if not self.step or world_size() > 1:  # the other processes do not know of the error
                raise
            self._flush(pending, logs)
            self._save(final=True)
            raise ImageError(f"{error}. Step {self.step} is saved; {self._left()}") from error

    def _validate_and_save(self, logs: RunLogs | None) -> None:
        self._validate(logs)
        stopped = self._stopping()
        self._save(final=stopped or self.step == self.recipe.steps)
        self._stop_here(stopped)

    def _stopping(self) -> bool:
        """True if any process was asked to stop; all processes agree."""
        return bool(sum_over_ranks(torch.tensor(float(self._stop.made))) > 0)

    def _stop_here(self, stopped: bool) -> None:
        """Leave a run that was asked to stop and has been saved, unless it is finished."""
        if stopped and (self.validation_pending or self.step < self.recipe.steps):
            raise StoppedError(
                f"stopped after step {self.step}; saved in {self.folder}, continue with --resume"
            )

    def _batches(self, last: int | None = None) -> Generator[list[MicroBatch], None, None]:
        """Batches of the steps that are left, or of those up to step `last`."""
        recipe = self.recipe
        yield from loader(
            SampleStream.of(recipe, self.train_sets, preprocessing_of(self.learner.model)),
            range(self.step, last or recipe.steps),
            recipe.batch,
            recipe.accumulate,
            rank=rank(),
            world_size=world_size(),
            workers=recipe.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _train_step(self, batch: list[MicroBatch], pending: list[Done]) -> None:
        """Take one optimizer step."""
        loss, labelled = self.learner.learn(batch, self.step)
        self.step += 1
        paths = [path for part in batch for path in part.paths]
        skipped = [reason for part in batch for reason in part.skipped]
        pending.append(Done(self.step, loss, labelled, paths, skipped))

    # -------------------------------------------------------------------------------- writing down

    def _open_logs(self, stack: contextlib.ExitStack) -> RunLogs:
        """Lock the folder and open the log files; `stack` closes and unlocks them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(self.folder))
        # Another run may have used the folder since this trainer was created.
        files.check_unused(self.folder, self.step)
        addresses = [card.address for card in self.space.cards]
        files.describe_run(self.folder, self.recipe, self.changes, addresses)
        names = [dataset.card.class_names for dataset in self.val_sets]
        logs = RunLogs(self.folder, self.step, names, self._guarded, self.validation_pending)
        stack.callback(logs.close)
        return logs

    def _compare_threads(self) -> None:
        before, now = self._threads_before, torch.get_num_threads()
        if self.device.type == "cpu" and is_main() and before not in (None, now):
            self._tell(
                f"the run had {before} CPU threads before, now {now}: its numbers differ in their "
                f"last bits from here on (--threads {before} avoids that)"
            )

    def _flush(self, pending: list[Done], logs: RunLogs | None) -> None:
        """Check the losses since the last flush: log them, and stop if one is not finite."""
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
        if logs is not None and count:
            steps = [done.step for done in pending[:count]]
            rates = [self.learner.learning_rate(step - 1) for step in steps]
            logs.write_steps(steps, rates, values[:count])
            if self.reporter is not None:
                self.reporter.stepped(steps[-1], sum(values[:count]) / count, rates[-1])
        if is_main() and not torch.stack([done.labelled for done in pending]).any():
            self._tell(
                f"steps {pending[0].step} to {pending[-1].step} have learnt nothing: every pixel "
                "of their pictures is ignored (fassd data check reports on the labels)"
            )
        if count < len(values):
            done = pending[count]
            raise DivergedError(
                f"the loss of step {done.step} is {values[count]}, at a learning rate of "
                f"{self.learner.learning_rate(done.step - 1):.3g} in {self.recipe.precision}; this "
                f"process's pictures: {', '.join(map(str, done.paths))}. The step was not saved; "
                f"{self._left()}. {ADVICE}"
            )
        if self.learner.overflows:
            raise DivergedError(
                f"gradients overflow float16 at any scale, up to step {self.step}: train in "
                "bfloat16 or float32"
            )
        pending.clear()

    def _left(self) -> str:
        if (self.folder / files.CHECKPOINT).exists():
            return f"--resume continues from the checkpoint in {self.folder}"
        return f"there is no checkpoint in {self.folder} yet"

    def _validate(self, logs: RunLogs | None) -> None:
        """Score the network; a validation interrupted by a stop stays due and gives no score."""
        self.evaluations = []
        if not self.val_sets:
            self.validation_pending = False
            return

        def advance(done: int, total: int) -> None:
            if self._stop.made:
                raise _Abandoned
            if is_main() and self.reporter is not None:
                self.reporter.validating(done, total)

        network, pictures = self.learner.evaluated, self.recipe.val_pictures
        try:
            if self.recipe.statistics:  # of the next batches, which a resumed run sees, too
                batches = self._batches(self.step + self.recipe.statistics)
                self.learner.measure(batches, frozen=self.step <= self.recipe.freeze)
            found = [
                validate(network, dataset, pictures, advance, self._tell)
                for dataset in self.val_sets
            ]
        except (_Abandoned, ValueError, RuntimeError, OSError, MemoryError) as error:
            # All processes do this, because each of them gets the others' errors.
            if not self._stopping():
                self.validation_pending = False
                self.unscored += 1
                if is_main():
                    self._tell(
                        f"no score: {error} (step {self.step}; so far {self.unscored} of the run's "
                        "validations failed)"
                    )
            return
        self.validation_pending = False
        self.evaluations = [evaluation for evaluation, _ in found]
        if logs is not None:
            logs.write_scores(self.step, found)
            scores = [evaluation.scores.miou for evaluation in self.evaluations]
            best = self._keep_best(sum(scores) / len(scores))
            if self.reporter is not None:
                self.reporter.validated(self.step, self.evaluations, best)

    def _keep_best(self, miou: float) -> bool:
        """Save the weights if their mean score is the best so far; True if they were saved."""
        before = self.best
        self.stale += 1
        if not miou > before:
            return False
        self.best, self.stale = miou, 0
        kept = self._guarded("best.safetensors", self._save_weights, "best.safetensors")
        if not kept:
            self.best = before
        return kept

    # --------------------------------------------------------------------------------- checkpoints

    def _save(self, final: bool) -> None:
        """Write checkpoint and weights; failing to write the final one is an error.

        Raises:
            DivergedError: a weight is not finite; what was saved before stays.
        """
        if not self.learner.is_finite():
            raise DivergedError(
                f"step {self.step} left weights that are not finite. It was not saved; "
                f"{self._left()}. {ADVICE}"
            )
        if final:  # in all processes before any of them exits: torchrun then ends the others
            in_main(self._save_all)
        elif is_main():
            self._guarded("the checkpoint", self._save_state)
            self._guarded("last.safetensors", self._save_weights, "last.safetensors")

    def _save_all(self) -> None:
        troubles = [
            files.failure("the checkpoint", self._save_state),
            files.failure("last.safetensors", self._save_weights, "last.safetensors"),
        ]
        if any(troubles):
            raise OSError(f"step {self.step}: {'; '.join(filter(None, troubles))}. {self._left()}")

    def _guarded(self, what: str, write: Any, *arguments: Any) -> bool:
        """True if `write` succeeded; a disk that is full for a while does not end the run."""
        trouble = files.failure(what, write, *arguments)
        if trouble is not None:
            self._tell(f"{trouble}; the earlier file is kept, training continues")
        return trouble is None

    def _facts(self) -> dict[str, Any]:
        info = info_of(self.learner.evaluated)
        return {
            "step": self.step,
            "best": self.best,
            "owed": self.validation_pending,
            "unscored": self.unscored,
            "stale": self.stale,
            "changes": self.changes,
            "threads": torch.get_num_threads(),
            "recipe": self.recipe.to_dict(),
            "data": files.data_of(self.space, self.train_sets),
            "network": info and info.to_json(),
        }

    def _save_weights(self, name: str) -> None:
        files.save_weights(self.folder / name, self.learner.evaluated, self._facts())

    def _save_state(self) -> None:
        facts = {**self._facts(), **self.learner.facts()}
        files.save_state(self.folder, self.learner.tensors(), facts)

    def _tell(self, text: str) -> None:
        if self.reporter is not None:
            self.reporter.message(text if world_size() == 1 else f"[process {rank()}] {text}")
