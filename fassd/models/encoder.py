"""Encoders of timm (PyTorch Image Models) in place of HarDNet.

timm is imported when a network with such an encoder is built, and is needed for nothing else.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fassd.models.layers import ConvLayer
from fassd.models.preprocess import PerChannel, Preprocessing
from fassd.models.weights import DownloadError, cache_folder

STRIDES = (4, 8, 16, 32)
"""Strides of the maps that the decoder joins, fine to coarse, in pixels of the picture."""

TRIED_AT = (96, 160)
"""A size that is a multiple of 32 and of nothing larger: an encoder that takes it takes any such.
"""

MOST_NAMED = 3

INSTALL = "pip install 'fassd-net[encoders]'"


class Encoder(nn.Module):
    """An encoder of timm, and a 1x1 `ConvLayer` on each of its maps.

    Pictures whose sides are no multiple of 32 are padded with zeros at the right and the bottom,
    which some encoders ask for, and the maps are cut to ceil(side / stride).

    Args:
        name: name in timm, with or without a tag of its weights: ``resnet18d``,
            ``resnet18d.ra2_in1k``.
        channels: numbers of channels of the maps, fine to coarse.
        pretrained: True starts from timm's own weights, see `pretrained_file`.
        in_channels: number of channels of the pictures; timm spreads weights made for three over
            others.

    Shape: (N, in_channels, H, W) to four maps, (N, channels[i], ceil(H / STRIDES[i]),
        ceil(W / STRIDES[i])).

    Attributes:
        name, body: the encoder.
        project: 1x1 convolutions, one for each map.
        preprocessing: normalisation of its pictures.

    Raises:
        ValueError: the name is unknown, or the encoder has no maps at these strides, or no weights.
        ImportError: timm is missing.
        DownloadError: the weights could not be fetched; the message says where to put them.
    """

    def __init__(
        self, name: str, channels: Sequence[int], pretrained: bool = False, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.name = name
        self.preprocessing = preprocessing_for(name)
        plan, self.channels_last = plan_of(name)
        options = plan if in_channels == 3 else {**plan, "in_chans": in_channels}
        timm = import_timm()
        self.body: Any = (
            load_pretrained(timm, name, options)
            if pretrained
            else timm.create_model(name, **options)
        )
        self.project = nn.ModuleList(
            ConvLayer(found, wanted, 1)
            for found, wanted in zip(self.body.feature_info.channels(), channels, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[2], x.shape[3]
        # A tracer's symbolic sizes are not known to be multiples.
        fits = isinstance(height, int) and isinstance(width, int)
        fits = fits and height % STRIDES[-1] == width % STRIDES[-1] == 0
        maps = self.body(
            x if fits else F.pad(x, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        )
        if self.channels_last:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        if not fits:
            # ONNX divides integers towards zero: what is divided must not be negative.
            maps = [
                each[:, :, : (height + stride - 1) // stride, : (width + stride - 1) // stride]
                for each, stride in zip(maps, STRIDES, strict=True)
            ]
        return [project(each) for project, each in zip(self.project, maps, strict=True)]

    def extra_repr(self) -> str:
        return self.name


class EncoderPlan(NamedTuple):
    """The options with which timm builds an encoder.

    Attributes:
        options: keyword arguments of ``timm.create_model``.
        channels_last: True if the encoder returns its maps as (N, H, W, C).
    """

    options: Mapping[str, Any]
    channels_last: bool


@functools.cache
def plan_of(name: str) -> EncoderPlan:
    """Find how an encoder of timm returns its maps at `STRIDES`; errors as in `Encoder`."""
    timm = import_timm()
    check_name(name)
    problem: Exception | None = None
    for own in ({}, {"strict_img_size": False}):  # this option lets Swin take any size
        with torch.device("meta"), torch.no_grad():
            try:
                body = timm.create_model(name, features_only=True, **own).eval()
            except (RuntimeError, AttributeError) as error:
                raise ValueError(
                    f"encoder {name!r} gives no maps: timm has no features_only for it ({error})"
                ) from error
            except TypeError:  # timm does not know the option
                continue
            features = body.feature_info
            indices = _deepest(name, features.reduction(), features.out_indices)
            try:
                last = body(torch.empty(1, 3, *TRIED_AT))[-1]
            except Exception as error:  # networks raise anything at a size that they do not take
                problem = problem or error
                continue
        options = {"features_only": True, "out_indices": indices, **own}
        return EncoderPlan(options, last.shape[1] != features.channels()[-1])
    size = timm.get_pretrained_cfg(name).input_size[1:]
    raise ValueError(
        f"encoder {name!r} is made for pictures of {size[0]}x{size[1]} and does not take any size, "
        f"as is needed ({problem})"
    ) from problem


def _deepest(name: str, strides: Sequence[int], indices: Sequence[int]) -> tuple[int, ...]:
    """Indices of the maps to get: the deepest at each of `STRIDES`; stages may hold several."""
    if missing := [stride for stride in STRIDES if stride not in strides]:
        raise ValueError(
            f"encoder {name!r} has maps at strides {shown(strides)}, none at {shown(missing)}; "
            f"{shown(STRIDES)} are needed; fassd info --encoders lists those that have them"
        )
    last = dict(zip(strides, indices, strict=True))
    return tuple(last[stride] for stride in STRIDES)


def load_pretrained(timm: Any, name: str, options: Mapping[str, Any]) -> Any:
    """An encoder with timm's own weights, from `pretrained_file` if it exists, else from the hub.

    Raises:
        ValueError: timm has no weights for it.
        DownloadError: the weights could not be fetched.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ValueError(
            f"timm has no pretrained weights for the encoder {name!r}: leave pretrained out"
        )
    file = pretrained_file(name)
    overlay = {"file": str(file)} if file.is_file() else None
    state = torch.get_rng_state()
    untrained = timm.create_model(name, **options)
    torch.set_rng_state(state)
    try:
        body = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        # timm does not report missing keys when the classifier is dropped.
        if left := _untouched(untrained, body):
            raise KeyError(f"without {shown(left[:MOST_NAMED])}")
        return body
    except Exception as error:  # from the hub's client, safetensors or load_state_dict
        if overlay is not None:
            raise ValueError(f"{file} does not fit the encoder {name!r}: {error}") from error
        source = f"{config.hf_hub_id} of the Hugging Face hub" if config.hf_hub_id else config.url
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DownloadError(
            f"could not get the weights of the encoder {name!r}, {source}: {reason}\n"
            f"To go on without the network, put its model.safetensors at {file}"
        ) from error


def _untouched(before: nn.Module, after: nn.Module) -> list[str]:
    """Names of weights of convolutions and matrices that still have their random values."""
    old = dict(before.named_parameters())
    return [
        name
        for name, weight in after.named_parameters()
        if weight.dim() > 1 and torch.equal(weight, old[name])
    ]


def pretrained_file(name: str) -> Path:
    """Path of a file of timm's weights, under the encoder's full name, used if it exists."""
    timm = import_timm()
    config = timm.get_pretrained_cfg(name)
    architecture = name.partition(".")[0]
    tag = f".{config.tag}" if config is not None and config.tag else ""
    return cache_folder() / "timm" / f"{architecture}{tag}.safetensors"


def preprocessing_for(name: str) -> Preprocessing:
    """The normalisation that timm gives for an encoder's pictures; RGB, like all of timm.

    Raises:
        ValueError, ImportError: as in `Encoder`.
    """
    timm = import_timm()
    check_name(name)
    config = timm.get_pretrained_cfg(name)
    mean, std = (
        cast(PerChannel, tuple(map(float, values)))
        for values in (
            (config.mean, config.std)
            if config is not None
            else (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
        )
    )
    return Preprocessing(mean, std, "RGB")


def check_name(name: str) -> None:
    """Check that timm knows an encoder.

    Raises:
        ValueError: timm does not know it; the message offers the nearest names.
    """
    timm = import_timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture.lower(), timm.list_models(), n=3)
        guess = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"unknown encoder {name!r}: timm {timm.__version__} has none of that name{guess} "
            "(fassd info --encoders lists them)"
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = timm.models.list_pretrained(f"{architecture}.*")
        raise ValueError(
            f"unknown encoder {name!r}: timm {timm.__version__} has no weights {tag!r} of it, "
            f"but {shown(tags) or 'none at all'}"
        ) from None


def reparameterize(network: nn.Module) -> nn.Module:
    """Merge the branches of encoders that are built for it, for instance RepVGG, in place.

    The network computes the same as before in eval mode, faster; its state dict changes, and it can
    no longer be trained as before.
    """
    for part in network.modules():
        if isinstance(part, Encoder):
            from timm.models import reparameterize_model

            part.body = reparameterize_model(part.body, inplace=True)
    return network


def import_timm() -> Any:
    """Import the package timm.

    Raises:
        ImportError: timm is missing; the message says how to install it.
    """
    import_torchvision()
    try:
        import timm
    except ImportError as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else str(error)
        raise ImportError(f"encoders need timm ({missing} is missing): {INSTALL}") from error
    return timm


_OPERATORS: list[Any] = []  # must live as long as the library that defined them


def import_torchvision() -> None:
    """Import torchvision for timm and others, if installed, even one built for another PyTorch.

    A torchvision for CUDA beside a PyTorch for CPUs, the pair that PyPI installs, stops at the
    first of its own operators. timm calls none of them, so it is enough to define their names.

    Raises:
        ImportError: torchvision is broken in another way.
    """
    while True:
        try:
            import torchvision  # noqa: F401
        except ImportError:
            return  # timm reports it
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise ImportError(f"torchvision, which timm needs, is broken: {error}") from error
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{missing[1]}() -> ()")
            _OPERATORS.append(library)
        else:
            return


def shown(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
