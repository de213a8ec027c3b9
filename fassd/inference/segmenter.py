"""Pictures in, label maps out."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, get_args, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fassd.export.exported import ExportedNetwork, default_device, is_exported
from fassd.inference.given import check_alone, check_file, checked_size
from fassd.inference.pictures import Batch, ImageLike, Order, tensor_to_array, to_picture
from fassd.inference.views import SummedViews, Views, only_view, small_logits, summed
from fassd.io.images import MAX_PIXELS, ImageError, resized
from fassd.io.levels import Range, as_range
from fassd.io.palette import IGNORE, LabelClass, classes_of, leave_out
from fassd.models import create_model, load, load_checkpoint
from fassd.models.device import DTYPES, pick_device
from fassd.models.encoder import reparameterize
from fassd.models.info import temperature_of
from fassd.models.layers import logits_of
from fassd.models.preprocess import normalize, preprocessing_of
from fassd.models.zoo import is_weights_file, settled
from fassd_kernels.reference.upsample import Measure

Labels: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Confident: TypeAlias = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


class Segmenter:
    """A network prepared to label pictures, including reading, sizes and precision.

    >>> labels = Segmenter("fassd_net", weights="cityscapes").predict("street.jpg")

    It works on its own copy of the network, in eval mode: later changes to `model` have no effect.
    Pictures of a list are processed one at a time, so that they may differ in size; those of a
    batch together.

    Args:
        model: name from `fassd.list_models()`, or a full one, as in `fassd.create_model`; a file of
            `fassd train` (`fassd.load`) or of `fassd export`; or a module that takes normalised BGR
            (1, 3, H, W), or the input described by `fassd.models.preprocessing_of`, and returns
            logits (1, classes, H, W), alone, in a dict under "out" or "logits", or first in a
            tuple.
        weights: weights, as for `fassd.create_model` (with a name) or `fassd.load_checkpoint` (with
            a module). None keeps the weights: for a name, random ones.
        num_classes: number of classes of a network given by name; None as in `fassd.create_model`.
        alpha: DAPF's reduction, for a network given by name; None as in `fassd.create_model`.
        backend: "reference" for plain PyTorch, "auto" for the fastest that `fassd_kernels` has
            here, or the name of one of its backends. For a file, its runtime: "onnxruntime" or
            "openvino" for .onnx, "auto" for the ending's default.
        dtype: precision of the network: torch.float32, float16, bfloat16, or None for the dtype of
            its weights; int8 lets its convolutions compute in bytes on a CPU, except the first and
            the last one. A file keeps its own.
        device: device to run on; None for that of `model`, or for a name CUDA if there is any.
        size: (height, width) of the network's input. Pictures are resized to it (bilinear,
            antialiased) and the logits are resized back (bilinear, align_corners=True, as
            everywhere in these networks) before the largest is taken. None uses the picture's own
            size, or that of a file that takes only one.
        scales: sizes of the views of each picture, as factors of its own or of `size`. With several
            views the label has the largest mean probability, as in `fassd val`.
        flip: True adds each view mirrored left to right.
        range: values that become 0 and 255 in pictures of more than 8 bits, as in
            `fassd.io.images.read_image`: (low, high), "auto", or None for all that 16 bits can hold
            and 0 .. 1 for floats.
        max_pixels: maximum of height times width of a picture file.
        calibration: for int8, pictures like those that will come, each as `predict` takes one; the
            ranges of the network's maps are measured on them.

    Raises:
        ValueError: a name or backend is unknown, weights are unsuitable, or a size, scale or range
            is bad; int8 comes without calibration, or calibration without int8.
        FileNotFoundError: there is no such weights file.
        TypeError: the model is neither a name nor a module; or, in `predict`, it returns no logits.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        *,
        weights: str | os.PathLike[str] | None = None,
        num_classes: int | None = None,
        alpha: int | None = None,
        backend: str = "auto",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        size: tuple[int, int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        range: Range = None,
        max_pixels: int = MAX_PIXELS,
        calibration: Iterable[ImageLike] | None = None,
    ) -> None:
        is_file = is_exported(model) or is_weights_file(model)
        if not isinstance(model, (str, nn.Module)) and not is_file:
            raise TypeError(
                f"model must be a name, a file or a torch.nn.Module, got {type(model).__name__}"
            )
        size = None if size is None else checked_size(size)
        if dtype not in (None, *DTYPES.values(), torch.int8):
            raise ValueError(f"dtype must be float32, float16, bfloat16, int8 or None, got {dtype}")
        is_exported_file = isinstance(model, ExportedNetwork) or is_exported(model)
        if (calibration is not None) != (dtype == torch.int8 and not is_exported_file):
            raise ValueError(
                "int8 needs calibration, pictures like those that will come"
                if calibration is None
                else "calibration is for a network in int8 alone, whose dtype is torch.int8"
            )
        self.backend = backend
        self.views = Views(scales, flip)
        self.range, self.max_pixels = as_range(range), max_pixels
        if is_exported(model):
            # Without a given device, a file runs on its runtime's.
            model = ExportedNetwork(model, backend, pick_device(device or default_device(model)))
        if isinstance(model, ExportedNetwork):
            check_file(model, weights, num_classes, alpha, dtype, size)
            self.size = size or model.input_size
            if model.input_size and tuple(self.views.scales) != (1,):
                only = "{}x{}".format(*model.input_size)
                raise ValueError(f"{model.path} takes pictures of {only} alone: scales have no use")
            self.model: nn.Module = model
            self.device, self.dtype = torch.device("cpu"), torch.float32  # for its input
            return
        network = _network(model, weights, num_classes, alpha, device)
        self.size = size
        self.model = network
        # The network's own dtype, not the requested one: an accelerated one may keep other buffers.
        first = next(network.parameters(), torch.empty(0))
        self.device = first.device
        self.dtype = first.dtype if dtype is None or dtype == torch.int8 else dtype
        inputs = None if calibration is None else self._batches(calibration)
        self.model = accelerated(network, backend, dtype, inputs)

    def _batches(self, pictures: Iterable[ImageLike]) -> Iterator[torch.Tensor]:
        """Inputs for calibration."""
        for index, picture in enumerate(pictures):
            yield self._batch(self._picture(picture, f"calibration {index}: ", "RGB"))[0]

    @property
    def classes(self) -> tuple[LabelClass, ...]:
        """Names and colours of the labels, as in `fassd.io.palette.classes_of`."""
        return classes_of(self.model)

    @property
    def palette(self) -> npt.NDArray[np.uint8]:
        """Colours of the labels, (classes, 3) uint8 RGB."""
        return np.array([info.color for info in self.classes], np.uint8)

    @property
    def bands(self) -> int | None:
        """Number of bands that the network takes; None for three colours."""
        return preprocessing_of(self.model).bands

    def __repr__(self) -> str:
        size = "the picture's" if self.size is None else "{}x{}".format(*self.size)
        return (
            f"Segmenter({type(self.model).__name__}, backend={self.backend!r}, "
            f"dtype={self.dtype}, device={self.device}, size={size})"
        )

    @overload
    def predict(self, image: ImageLike, *, order: Order = "RGB") -> Labels: ...
    @overload
    def predict(self, image: Batch, *, order: Order = "RGB") -> list[Labels]: ...
    @overload
    def predict(
        self,
        image: ImageLike,
        *,
        order: Order = "RGB",
        confidence: Measure,
        min_confidence: float | None = None,
    ) -> Confident: ...
    @overload
    def predict(
        self,
        image: Batch,
        *,
        order: Order = "RGB",
        confidence: Measure,
        min_confidence: float | None = None,
    ) -> list[Confident]: ...
    def predict(
        self,
        image: ImageLike | Batch,
        *,
        order: Order = "RGB",
        confidence: Measure | None = None,
        min_confidence: float | None = None,
    ) -> Labels | Confident | list[Labels] | list[Confident]:
        """Label every pixel.

        Args:
            image: one of the following, or a list or tuple of them:

                * a path to a picture file of any kind that `fassd.io.images` reads, or the file's
                  content as bytes;
                * a Pillow image of any mode;
                * a NumPy array, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA; bool, uint8, uint16
                  over the full range, or floating point in 0 .. 1; with a `range`, of numbers in
                  it;
                * a torch tensor with the same values and dtypes, (H, W), (C, H, W) or (H, W, C)
                  with 1, 3 or 4 channels, on any device; where both first and last could be
                  channels, the first are;
                * a batch of such, an array (N, H, W, C) or a tensor (N, C, H, W) or (N, H, W, C),
                  which the network takes at once.

                A network with other bands than three colours (`in_channels` of
                `fassd.create_model`) takes arrays and tensors with its number of channels, and
                files as in `fassd.io.bands`.

            order: order of the colours in arrays and tensors: "RGB", or "BGR" as in OpenCV.
            confidence: measure of each label's certainty, to return it as well: the largest
                "probability", its "margin" over the second largest, or "entropy", 1 minus its ratio
                to the entropy of equal probabilities. The probabilities are at the network's
                temperature (`fassd val --temperature fit`).
            min_confidence: certainty, from 0 to 1, below which labels become
                `fassd.io.palette.IGNORE`.

        Returns:
            (H, W) class indices at the picture's own size, uint8 (uint16 above 256 classes); with
            `confidence` a tuple of these and, with the same shape, 255 times the certainty; for a
            list, a list of them; for a batch (N, H, W).

        Raises:
            ImageError: a picture cannot be read or converted (a ValueError).
            ValueError: the picture, or `size`, is too small for the network (these two errors name
                the file, or the position in the list); `order` is another, or "BGR" for a file or
                Pillow image, which have their own; or `confidence` is none of the above, or the
                network only returns labels, or has more than 256 classes.
        """
        if confidence is None:
            if min_confidence is not None:
                raise ValueError("min_confidence needs a confidence, got None")
            return self._predict_any(image, order, None)
        self.check_confidence(confidence, min_confidence)
        found = self._predict_any(image, order, confidence)
        for labels, certainty in found if isinstance(found, list) else [found]:
            leave_out(labels, certainty, min_confidence)
        return found

    def _predict_any(
        self, image: ImageLike | Batch, order: Order, confidence: Measure | None
    ) -> Any:
        if isinstance(image, (list, tuple)):
            prefixes = [f"picture {i}: " for i, _ in enumerate(image)]
            pairs = zip(image, prefixes, strict=True)
            return [self._predict(*each, order, confidence) for each in pairs]
        if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4:
            return self._predict_batch(image, order, confidence)
        return self._predict(image, "", order, confidence)

    def probabilities(self, image: ImageLike, *, order: Order = "RGB") -> torch.Tensor:
        """The probabilities of all classes, the mean of the views, for one picture.

        Returns:
            (classes, H, W) float32 at the picture's own size, on the network's device, at the
            network's temperature.

        Raises:
            ValueError: as in `predict`; or the network only returns labels.
        """
        self._check_output(None)
        prefix = _name(image)
        return self._summed(self._picture(image, prefix, order), prefix).mean()

    def logits(self, image: ImageLike, *, order: Order = "RGB") -> torch.Tensor:
        """Compute the scores behind `predict`, for one picture.

        Returns:
            (classes, H, W) float32 at the picture's own size, on the network's device; with several
            views the logarithms of the mean probabilities.
        """
        prefix = _name(image)
        picture = self._picture(image, prefix, order)
        if not self.views.plain:
            return self._summed(picture, prefix).mean(temperature=1.0).log()
        batch, size = self._batch(picture)
        scores = logits_of(self._run(self.model, batch, prefix)).float()
        return only_view(scores, size).logits()[0]

    def check_confidence(self, measure: str, least: float | None = None) -> None:
        """Check that `predict` gives certainty by a measure.

        Raises:
            ValueError: it does not; or `least` is given and `fassd.io.palette.IGNORE` is a class.
        """
        if measure not in get_args(Measure):
            known = ", ".join(get_args(Measure))
            raise ValueError(f"confidence must be one of {known}, or None, got {measure!r}")
        self._check_output(measure)
        if len(self.classes) > 256:
            raise ValueError(
                f"confidence needs at most 256 classes, the network has {len(self.classes)}"
            )
        if least is not None and len(self.classes) > IGNORE:
            raise ValueError(f"--min-confidence writes {IGNORE}, which is a class here")

    def _check_output(self, measure: str | None) -> None:
        """Check that a file returns a measure, or the probabilities."""
        file: Any = self.model
        output = getattr(getattr(file, "metadata", None), "output", "logits")
        if output != "logits" and not (measure == file.measure is not None and self.views.plain):
            raise ValueError(
                f"{file.path} gives {output} without {measure or 'probabilities'}: export it with "
                "--output logits"
            )

    def _predict(self, image: Any, prefix: str, order: Order, confidence: Measure | None) -> Any:
        prefix = _name(image) or prefix
        picture = self._picture(image, prefix, order)
        if confidence is not None:
            labels, certainty = self._confident(picture, prefix, confidence).cpu().numpy()
            return labels, certainty
        if not self.views.plain:
            found = self._summed(picture, prefix).labels().cpu()
            return found.numpy() if found.dtype == torch.uint8 else found.numpy().astype(np.uint16)
        return self._labels(*self._batch(picture), prefix)[0]

    def _predict_batch(
        self,
        images: npt.NDArray[Any] | torch.Tensor,
        order: Order,
        confidence: Measure | None,
    ) -> Any:
        """The labels of pictures of one size, (N, H, W), or a tuple of them and their certainty."""
        if isinstance(images, torch.Tensor):
            images = tensor_to_array(images, self.bands)
        prefixes = [f"picture {index}: " for index in range(len(images))]
        pairs = zip(images, prefixes, strict=True)
        if not len(images):
            empty = np.zeros(images.shape[:3], np.uint8)
            return empty if confidence is None else (empty, empty)
        if not self.views.plain or confidence is not None:
            alone = [self._predict(*pair, order, confidence) for pair in pairs]
            if confidence is None:
                return np.stack(alone)
            return tuple(np.stack(each) for each in zip(*alone, strict=True))
        pictures = [self._picture(*pair, order) for pair in pairs]
        batches, sizes = zip(*map(self._batch, pictures), strict=True)
        return self._labels(torch.cat(batches), sizes[0], "")

    def _labels(self, batch: torch.Tensor, size: tuple[int, int], prefix: str) -> Labels:
        """The labels, (N, H, W), of the network's input; (H, W) is the pictures' own size."""
        network: Any = self.model
        if self._is_direct(batch, size):
            return self._run(network.predict_labels, batch, prefix).cpu().numpy()
        scores = logits_of(self._run(self.model, batch, prefix)).float()
        found = [only_view(each[None], size).labels() for each in scores]
        labels = torch.stack(found).cpu().numpy()
        return labels if labels.dtype == np.uint8 else labels.astype(np.uint16)

    def _is_direct(self, batch: torch.Tensor, size: tuple[int, int]) -> bool:
        """True if the network returns labels of up to 256 classes without full-size scores."""
        network: Any = self.model
        hooked = network._forward_hooks or network._forward_pre_hooks
        sides = batch.shape[1:3] if batch.dtype == torch.uint8 else batch.shape[2:]
        fits = size == tuple(sides) and getattr(network, "num_classes", 0) <= 256
        return hasattr(network, "predict_labels") and fits and not hooked

    def _confident(
        self, picture: npt.NDArray[np.uint8], prefix: str, measure: Measure
    ) -> torch.Tensor:
        """Labels and their certainty, (2, H, W) uint8."""
        network: Any = self.model
        # Computed by fassd_kernels, or by files that return it.
        if self.views.plain and getattr(network, "measure", None) is not None:
            batch, size = self._batch(picture)
            if self._is_direct(batch, size):
                direct = functools.partial(network.predict_labels, measure=measure)
                return self._run(direct, batch, prefix)[0]
        if getattr(getattr(network, "metadata", None), "output", "logits") != "logits":
            raise ValueError(
                f"{prefix}{network.path} gives certainty only at the size that it takes: resize "
                "the picture, or export with --size dynamic, or logits"
            )
        return self._summed(picture, prefix).confident(measure)

    def _picture(self, image: Any, prefix: str, order: Order) -> npt.NDArray[np.uint8]:
        """A picture as uint8 RGB, (H, W, 3), or (H, W, bands)."""
        of_file = isinstance(image, (str, os.PathLike))  # whose errors name it themselves
        try:
            return to_picture(image, self.range, order, self.max_pixels, self.bands)
        except ImageError as error:
            if of_file and order == "RGB":
                raise
            raise ImageError(f"{prefix}{error}") from error

    def _batch(self, picture: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, tuple[int, int]]:
        """The network's input, (1, 3, H, W), and the picture's own size."""
        height, width = picture.shape[:2]
        return self._input(resized(picture, self.size or (height, width))), (height, width)

    def _input(self, picture: npt.NDArray[np.uint8]) -> torch.Tensor:
        if getattr(self.model, "takes_pictures", False):
            return torch.tensor(picture)[None]
        batch = torch.from_numpy(normalize(picture, preprocessing_of(self.model)))[None]
        return batch.to(self.device, self.dtype)

    def _summed(self, picture: npt.NDArray[np.uint8], prefix: str) -> SummedViews:
        """The probabilities of the views, summed."""
        run = functools.partial(small_logits, self.model)
        return summed(
            self.model,
            picture,
            self.views,
            lambda view: self._run(run, self._input(view), prefix),
            self.size,
            temperature_of(self.model),
        )

    def _run(self, network: Any, batch: torch.Tensor, prefix: str) -> Any:
        try:
            with torch.inference_mode():
                return network(batch)
        except ValueError as error:
            raise ValueError(f"{prefix}{error}") from error


def _name(image: Any) -> str:
    """Prefix of errors about a picture: its file, if it has one."""
    return f"{os.fspath(image)}: " if isinstance(image, (str, os.PathLike)) else ""


def accelerated(
    model: nn.Module,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
    calibration: Iterable[torch.Tensor] | None = None,
) -> nn.Module:
    """A copy of `model` in eval mode, computing in `dtype` with `backend` (see `Segmenter`).

    Branches of an encoder that can be merged are merged. `calibration` holds inputs of the network.

    Raises:
        ValueError: the backend is unknown to `fassd_kernels`, or not available.
    """
    network = reparameterize(copy.deepcopy(model).eval())
    if backend == "reference" and dtype != torch.int8:
        return network if dtype is None else network.to(dtype)
    import fassd_kernels

    settings: Any = {"dtype": dtype, "backend": backend, "calibration": calibration}
    return fassd_kernels.accelerate(network, **settings).eval()


def _network(
    model: str | os.PathLike[str] | nn.Module,
    weights: str | os.PathLike[str] | None,
    num_classes: int | None,
    alpha: int | None,
    device: torch.device | str | None,
) -> nn.Module:
    """The network on its device, with its weights; the caller's own module is not changed."""
    if is_weights_file(model):
        check_alone(model, weights)
        settled(model, None, num_classes, alpha)
        network: nn.Module = load(model)
        device = pick_device(device)
    elif isinstance(model, str):
        network = create_model(model, num_classes, alpha, weights=weights)
        device = pick_device(device)
    else:
        assert isinstance(model, nn.Module)  # a path is always a file
        network = model
        device = pick_device(device) if device is not None else None
        if weights is not None:
            network = copy.deepcopy(model)
            load_checkpoint(network, weights)
    if device is None:
        return network
    # `to` moves a module in place, so one that has to move is copied first.
    moves = any(tensor.device != torch.device(device) for tensor in network.parameters())
    return copy.deepcopy(network).to(device) if moves else network
