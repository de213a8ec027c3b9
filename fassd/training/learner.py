"""The parts that learn: a network, the average of its weights, the optimizer, and their step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fassd.data.groups import LabelSpace
from fassd.distributed import sum_over_ranks, world_size
from fassd.io.palette import labels_by_name
from fassd.models import NetworkInfo, create_model, get_variant, load_checkpoint, preprocessing_of
from fassd.models.encoder import Encoder
from fassd.models.info import remember
from fassd.models.layers import init_xavier
from fassd.models.network import FASSDNet
from fassd.models.variants import full_name
from fassd.models.zoo import weights_file
from fassd.training.auxiliary import WithHeads
from fassd.training.distillation import Teacher
from fassd.training.loss import (
    BootstrappedCrossEntropy,
    CrossEntropy,
    RegionLoss,
    labelled_pictures,
)
from fassd.training.optim import (
    cosine_learning_rate,
    create_optimizer,
    flatten_optimizer,
    moving_average,
    poly_learning_rate,
    restore_optimizer,
)
from fassd.training.precision import avoid_unsound_gradients
from fassd.training.recipe import Recipe, RecipeError
from fassd.training.state import OPTIMIZER
from fassd.training.stream import MicroBatch
from fassd.training.sync_norm import synchronized
from fassd_kernels.accelerate import swap

SMALLEST_SCALE = 2.0**-14  # smallest scale of the loss in float16; the first is 2 ** 16
MODEL, HEADS, AVERAGE = "model.", "heads.", "average."
SCALER, WEIGHTS = "scaler", "class_weights"


class Learner:
    """A network and everything that changes while it learns.

    Args:
        recipe, space, device: settings, label space of the classes to learn, and device to train
            on.
        weights: weights of the classes and groups in the loss; None weighs all alike.
        start: True loads the recipe's initial weights; False for a checkpoint, which has all of
            them.
        tell: function that receives the messages of loading those weights.

    Attributes:
        model: the network.
        encoder: the part of it that the recipe may freeze, or train at a rate of its own.
        average: moving average of its weights; None unless the recipe sets `ema`.
        trained: the network, together with the auxiliary heads if the recipe sets `auxiliary`.
        parallel: `trained`, wrapped to share gradients with the other processes under torchrun.
        optimizer, scaler, loss, teacher: optimizer, loss scaler, loss and teacher of the recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        space: LabelSpace,
        device: torch.device,
        weights: list[float] | None,
        *,
        start: bool,
        tell: Callable[[str], object],
    ) -> None:
        self.recipe = recipe
        self.weights = weights
        self.device = device
        torch.manual_seed(recipe.seed)
        self.model = _network(recipe, space, start, tell).to(device)
        if recipe.channels_last:
            # PyTorch's type hints allow `memory_format` only together with a tensor or a dtype.
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = None if recipe.ema is None else moving_average(self.model, recipe.ema)
        if recipe.accelerate:
            # Modules are replaced here, not by `accelerate`, which warns where there is nothing to
            # replace.
            self.model = swap(self.model, "auto", {})
            if self.average is not None:
                self.average.module = swap(self.average.module, "auto", {})
        if recipe.sync_bn:
            self.model = synchronized(self.model)
        avoid_unsound_gradients(self.model, device, recipe.precision)
        self.encoder = _encoder(self.model)
        self.trained: nn.Module = self.model
        if recipe.auxiliary:
            self.trained = WithHeads(self.model, len(space.classes)).to(device)
        self.parallel = self.trained
        if world_size() > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.parallel = DistributedDataParallel(
                self.trained, device_ids=ids, find_unused_parameters=recipe.freeze > 0
            )
        self.optimizer = create_optimizer(recipe, self.trained, self.encoder)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        kinds: dict[str, Any] = {"groups": space.groups, "weights": weights}
        self.loss: CrossEntropy = (
            BootstrappedCrossEntropy(recipe.min_pixels, recipe.threshold, **kinds)
            if recipe.loss == "bootstrapped"
            else CrossEntropy(**kinds)
        ).to(device)
        self.loss_of_heads = CrossEntropy(**kinds).to(device)
        self.teacher = None
        if recipe.teacher is not None:
            self.teacher = Teacher(
                recipe.teacher,
                space.class_names,
                device,
                recipe.accelerate,
                preprocessing_of(self.model),
            )
        if recipe.dice or recipe.lovasz:
            self.loss = RegionLoss(self.loss, recipe.dice, recipe.lovasz)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and saved: the average if there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def overflows(self) -> bool:
        """True if gradients overflow float16 at any scale of the loss."""
        return self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE

    def is_finite(self) -> bool:
        """True if all weights are finite."""
        return all(bool(parameter.isfinite().all()) for parameter in self.trained.parameters())

    def learning_rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0."""
        recipe = self.recipe
        base, steps = recipe.learning_rate, recipe.steps
        if recipe.schedule == "cosine":
            return cosine_learning_rate(step, base, steps, recipe.warmup)
        return poly_learning_rate(step, base, steps, recipe.power, recipe.warmup)

    # ----------------------------------------------------------------------------------- learning

    def learn(self, batch: list[MicroBatch], step: int) -> tuple[Tensor, Tensor]:
        """Take optimizer step `step`, counted from 0.

        Returns:
            This process's share of the loss, and the number of pictures over all processes that
            have a labelled pixel; both scalars on the device.

        Raises:
            RecipeError: the micro-batches are too small for batch norm.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step) * group.get("factor", 1.0)
        # The mean is over the labelled pictures of all processes and micro-batches, so that the way
        # in which a batch is divided does not matter.
        own = torch.stack([labelled_pictures(part.labels) for part in batch]).sum()
        labelled = sum_over_ranks(own.to(self.device))
        pictures = labelled.clamp_min(1)
        self.parallel.train()
        if self.recipe.freeze:
            self._freeze(step < self.recipe.freeze)
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(batch, start=1):
            with self._accumulating(number < len(batch)):
                total += self._backward(part, pictures)
        if self.recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trained.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return total, labelled

    def _freeze(self, frozen: bool) -> None:
        """Freeze the encoder's weights and statistics, or let them learn."""
        self.encoder.requires_grad_(not frozen)
        if frozen:
            self.encoder.eval()

    def measure(self, batches: Iterable[list[MicroBatch]], frozen: bool) -> None:
        """Recompute the batch norm statistics of the averaged weights from these batches.

        Args:
            batches: micro-batches of each batch.
            frozen: True if the encoder is frozen and keeps its own statistics.
        """
        network = self.evaluated
        encoder = _encoder(network)
        kept = set(encoder.modules()) if frozen else set()
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m not in kept]
        momenta, training = [norm.momentum for norm in norms], network.training
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # momentum None: the mean of all batches
        network.train()
        encoder.train(not frozen)
        with self._autocast(), torch.no_grad():
            for batch in batches:
                for part in batch:
                    network(self._placed(part))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(training)

    def _accumulating(self, more: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged with the last micro-batch only."""
        if more and isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return contextlib.nullcontext()

    def _backward(self, part: MicroBatch, pictures: Tensor) -> Tensor:
        """Add the gradients of a micro-batch; return its share of the loss."""
        images, labels = self._placed(part), part.labels.to(self.device, non_blocking=True)
        with self._autocast():
            output = self._forward(images)
        logits, *coarse = output if isinstance(output, tuple) else (output,)
        losses = self.loss.per_picture(logits, labels)
        for found in coarse:
            shrunk = F.interpolate(labels[:, None], found.shape[2:], mode="nearest-exact")[:, 0]
            losses = losses + self.recipe.auxiliary * self.loss_of_heads.per_picture(found, shrunk)
        if self.teacher is not None:
            with self._autocast():
                losses = losses + self.recipe.distillation * self.teacher.per_picture(
                    images, logits, labels
                )
        share = losses.sum() / pictures
        # DistributedDataParallel averages gradients over the processes, but the shares must be
        # summed.
        self.scaler.scale(share * world_size()).backward()
        return share.detach()

    def _placed(self, part: MicroBatch) -> Tensor:
        """The pictures of a micro-batch, on the device and in the layout of the network."""
        images = part.images.to(self.device, non_blocking=True)
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def _autocast(self) -> torch.autocast:
        half = self.recipe.precision != "float32"
        dtype = getattr(torch, self.recipe.precision)
        return torch.autocast(self.device.type, dtype if half else None, enabled=half)

    def _forward(self, images: Tensor) -> Any:
        try:
            return self.parallel(images)
        except ValueError as error:
            count, _, height, width = images.shape
            if "value per channel" not in str(error):
                raise RecipeError(f"crop [{height}, {width}]: {error}") from error
            raise RecipeError(
                f"batch norm has only one value per channel to learn from ({error}): a micro-batch "
                f"is {count} x {height}x{width} pixels; take a larger batch, a smaller accumulate "
                "or a larger crop"
            ) from error

    # ------------------------------------------------------------------------------------- state

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that learning changes, by name: weights, average, and optimizer."""
        heads = self.trained.heads if isinstance(self.trained, WithHeads) else nn.ModuleList()
        parts = {
            MODEL: self.model.state_dict(),
            HEADS: heads.state_dict(),
            AVERAGE: {} if self.average is None else self.average.state_dict(),
            OPTIMIZER: flatten_optimizer(self.optimizer),
        }
        return {f"{prefix}{key}": value for prefix in parts for key, value in parts[prefix].items()}

    def facts(self) -> dict[str, Any]:
        """The rest of the state, as JSON: class weights, the loss's scale in float16."""
        scaler = {SCALER: self.scaler.state_dict()} if self.scaler.is_enabled() else {}
        return {**scaler, **({} if self.weights is None else {WEIGHTS: self.weights})}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Restore the state from the results of `tensors` and `facts`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                key[len(prefix) :]: value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }

        self.model.load_state_dict(part(MODEL))
        if isinstance(self.trained, WithHeads):
            self.trained.heads.load_state_dict(part(HEADS))
        if self.average is not None:
            self.average.load_state_dict(part(AVERAGE))
        restore_optimizer(self.optimizer, part(OPTIMIZER))
        if SCALER in facts:
            self.scaler.load_state_dict(facts[SCALER])


def _network(
    recipe: Recipe, space: LabelSpace, start: bool, tell: Callable[[str], object]
) -> nn.Module:
    """Build the network of a recipe, with its initial weights."""
    encoder, weights = get_variant(recipe.model).encoder, recipe.weights
    pretrained = False
    if weights is None and recipe.encoder == "imagenet":
        pretrained = start and encoder is not None
        weights = "imagenet" if encoder is None else None
    model = create_model(recipe.model, len(space.classes), recipe.alpha, pretrained=pretrained)
    _take_bands(model, recipe, space)
    if pretrained:
        tell(f"encoder {encoder} with timm's weights")
    if recipe.init == "xavier":
        model.initialize(init_xavier)
    if weights is not None and start:
        file = weights_file(recipe.model, weights)
        tell(str(load_checkpoint(model, file, strict=False)))
        _reorder_head(model, space.class_names)
    remember(model, NetworkInfo.of(recipe.model, recipe.alpha, space.classes))
    return model


def _take_bands(model: FASSDNet, recipe: Recipe, space: LabelSpace) -> None:
    """Give a network of bands the normalisation of the first card.

    Raises:
        RecipeError: the pictures do not have the bands that the network takes.
    """
    for card in space.cards:
        count = card.bands or 3
        if count != model.in_channels:
            wanted = full_name(recipe.model.partition("+bands")[0], in_channels=count)
            raise RecipeError(
                f"{recipe.model} takes {model.in_channels} channels, the pictures of {card.named} "
                f"have {count}: --model {wanted}"
            )
    own = space.cards[0].preprocessing
    if own is not None:
        model.preprocessing = own
        if recipe.teacher is not None:
            raise RecipeError("teacher: distillation is for RGB pictures, not for bands")


def _encoder(model: Any) -> nn.Module:
    """The encoder itself: for timm's without the convolutions behind it, which start at random."""
    base: nn.Module = model.base
    return base.body if isinstance(base, Encoder) else base


def _reorder_head(model: Any, wanted: list[str]) -> None:
    """Reorder the head's channels to another order of the classes, if the weights named theirs."""
    try:
        labels = labels_by_name(model, wanted)
    except ValueError:  # other classes start from the head's weights in their order
        return
    if labels is not None:
        for parameter in model.finalConv.parameters():
            parameter.data = parameter.data[np.argsort(labels)]
