"""Networks of the family, by name or by file of weights."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from fassd.models import weights as weight_files
from fassd.models.checkpoint import load_checkpoint
from fassd.models.info import NetworkInfo, read_info, remember
from fassd.models.network import FASSDNet
from fassd.models.preprocess import OURS, Preprocessing
from fassd.models.tensor_files import CheckpointError
from fassd.models.variants import VARIANTS, full_name, get_variant

PUBLISHED = (*weight_files.SHIPPED, "cityscapes", "imagenet")
"""Names of weights that `create_model` accepts."""


def create_model(
    name: str,
    num_classes: int | None = None,
    alpha: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    *,
    encoder: str | None = None,
    pretrained: bool = False,
    light_decoder: bool = False,
    dilations: Sequence[int] | None = None,
    in_channels: int | None = None,
) -> FASSDNet:
    """Build a network of the family in plain PyTorch, on the default device, in training mode.

    >>> model = create_model("fassd_net", 11, encoder="resnet18d", pretrained=True)

    Args:
        name: one of `list_models()`, or a full name with encoder, light decoder and dilations in
            it, as files and commands have them: "fassd_net@resnet18d+light+dilations6-12-18".
        num_classes: number of channels of the output; None for that of the weights' file if it says
            so, as the files of `fassd train` do, else 19.
        alpha: factor by which DAPF's branches are narrower than the coarsest map; an integer from 1
            to that map's width (224; fc_hardnet_70: 320). Unused by networks without DAPF. None for
            that of the weights' file if it says so, else 2.
        weights: initial weights:

            * ``None``: Kaiming normal convolutions, batch norm 1 and 0 (`layers.init_weights`);
            * a path, read by `load_checkpoint`;
            * ``"streets"``: ours, in the package (fassd_net and fassd_net_l2 at 19 classes and
              alpha 2), trained on generated street scenes and on the photographs of CamVid, which
              is for research;
            * ``"synthetic"``: ours, likewise, trained on generated street scenes alone: not for
              photographs, and free of others' terms;
            * ``"cityscapes"``: the authors' trained file (fassd_net, fassd_net_l1 and fassd_net_l2
              at 19 classes and alpha 2), downloaded once by `weights.fetch`;
            * ``"imagenet"``: the authors' ImageNet encoder, likewise; the rest stays as with
              ``None``.

            The downloaded weights are the work of FASSD-Net's authors, who published them without
            a licence; this project's licence does not cover them.
        encoder: a name of timm's, whose encoder takes the place of HarDNet's; ``fassd info
            --encoders`` lists them. Its pictures are normalised as its weights were trained
            (`preprocessing_of`). Of the family, FASSD-Net and its baselines take one.
        pretrained: True starts the encoder from timm's own weights, from the Hugging Face hub;
            their licences differ.
        light_decoder: True puts 3x3 convolutions in place of the decoder's HarDBlocks, as in
            FASSD-Net-L2.
        dilations: dilations of DAPF's three asymmetric branches; None for the paper's, 12, 24, 36.
        in_channels: number of bands of the pictures, if they are not three colours: 1 to 512. They
            are normalised as ``model.preprocessing`` says, which may be assigned.

    Returns:
        A `FASSDNet`, which maps (N, 3, H, W) normalised BGR (RGB with an encoder of timm) to logits
        (N, num_classes, H, W).

    Raises:
        ValueError: the name is unknown, an argument is outside its range or contradicts the
            weights' file, or the weights were not published for this variant.
        CheckpointError: the weights file does not fit.
        FileNotFoundError: there is no such weights file.
        DownloadError: the download failed; the message says where to put the file by hand.
        ImportError: an encoder needs timm, which is missing; the message says how to install it.
    """
    name = full_name(name, encoder, light_decoder, dilations, in_channels)
    get_variant(name)  # an unknown name is the first error to report
    name, num_classes, alpha = settled(weights, name, num_classes, alpha)
    if pretrained and weights is not None:
        raise ValueError(f"pretrained: the weights are those of {os.fspath(weights)!r} already")
    model = get_variant(name).build(num_classes, alpha, pretrained=pretrained)
    remember(model, NetworkInfo(name, alpha))
    if weights is None:
        return model
    if weights in ("cityscapes", *weight_files.SHIPPED) and (num_classes, alpha) != (19, 2):
        raise ValueError(
            f"weights={weights!r} has 19 classes and alpha 2, not "
            f"num_classes={num_classes} and alpha={alpha} as asked for; weights='imagenet' starts "
            "any of them from a trained encoder"
        )
    load_checkpoint(model, weights_file(name, weights))
    return model


def load(path: str | os.PathLike[str]) -> FASSDNet:
    """The network in a file of `fassd train`, in eval mode, with its classes' names and colours.

    >>> model = fassd.load("runs/a/best.safetensors")

    Args:
        path: path of ``best.safetensors`` or ``last.safetensors`` of a run.

    Raises:
        CheckpointError: the file cannot be read, or does not say which network it holds.
        ValueError: its description of the network cannot be understood.
        FileNotFoundError: there is no such file.
    """
    info = read_info(path)
    if info is None and not os.path.exists(path):
        raise FileNotFoundError(f"no weights file {os.fspath(path)!r}")
    if info is None:
        raise CheckpointError(
            f"{path} does not say which network it holds, as the files of fassd train do: name it, "
            f"fassd.create_model(NAME, num_classes, alpha, weights={os.fspath(path)!r})"
        )
    return create_model(info.model, weights=path).eval()


def is_weights_file(model: object) -> TypeGuard[str | os.PathLike[str]]:
    """True if `model`, given in place of a network's name, is a file of weights."""
    if not isinstance(model, (str, os.PathLike)) or model in VARIANTS:
        return False
    return Path(model).suffix in (".safetensors", ".pth", ".pt", ".pkl")


def settled(
    weights: str | os.PathLike[str] | None,
    model: str | None = None,
    num_classes: int | None = None,
    alpha: int | None = None,
    default_classes: int = 19,
) -> tuple[str, int, int]:
    """Name, number of classes and alpha: as given, else as in the weights' file, else the defaults.

    Raises:
        ValueError: an argument contradicts the file, the message names both; or what the file says
            cannot be understood.
    """
    info = None
    if weights is not None and weights not in PUBLISHED:
        info = read_info(weights)
    if info is None:
        return (
            model or "fassd_net",
            default_classes if num_classes is None else num_classes,
            2 if alpha is None else alpha,
        )
    known = (info.model, info.num_classes, info.alpha)
    if model == re.split("[@+]", info.model)[0]:  # the file supplies the rest of the name
        model = None
    asked = {"model": model, "classes": num_classes, "alpha": alpha}
    for (what, value), own in zip(asked.items(), known, strict=True):
        if value not in (None, own):
            raise ValueError(
                f"{weights} holds {info.model} of {info.num_classes} classes and alpha "
                f"{info.alpha}; asked for was {what} {value}"
            )
    return known


def preprocessing_before(name: str, weights: str | os.PathLike[str] | None = None) -> Preprocessing:
    """The normalisation of ``create_model(name, weights=weights)``, before the network is built.

    Raises:
        ValueError, ImportError: as in `create_model`.
    """
    info = None if weights is None else read_info(weights)
    return get_variant(name).preprocessing if info is None else info.preprocessing or OURS


def weights_file(name: str, weights: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Path of the weights that `create_model` would load; the authors' files are downloaded.

    Raises:
        ValueError: the weights were not published for this variant.
        DownloadError: the download failed.
    """
    if weights == "imagenet":
        if get_variant(name).encoder is not None:
            raise ValueError(
                "weights='imagenet' is HarDNet's encoder, which this network does not have; "
                "pretrained=True starts from timm's weights"
            )
        return weight_files.fetch("imagenet_weights.pth")
    if weights == "cityscapes":
        files = {known: v.cityscapes for known, v in VARIANTS.items() if v.cityscapes}
        return weight_files.fetch(files[_published(name, weights, files)])
    if weights in weight_files.SHIPPED:
        known = dict.fromkeys(weight_files.SHIPPED_NETWORKS, "")
        return weight_files.shipped(_published(name, weights, known), str(weights))
    return weights


def _published(name: str, weights: str | os.PathLike[str], files: Mapping[str, str]) -> str:
    if name not in files:
        raise ValueError(
            f"weights={weights!r}: none were published for {name!r}, only for {', '.join(files)}"
        )
    return name


def default_weights(name: str, num_classes: int = 19, alpha: int = 2) -> str | None:
    """Weights that commands use by default: the shipped ones if they fit, else None."""
    fits = name in weight_files.SHIPPED_NETWORKS and (num_classes, alpha) == (19, 2)
    return weight_files.SHIPPED[0] if fits else None
