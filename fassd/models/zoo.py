"""The named variants: one registry, one entry each."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from fassd.models import weights as weight_files
from fassd.models.checkpoint import CheckpointError, load_checkpoint
from fassd.models.info import NetworkInfo, read_info, remember
from fassd.models.network import FIVE_STAGES, FASSDNet


@dataclass(frozen=True)
class Published:
    """The authors' own figures for 1024x2048 pictures of Cityscapes, 19 classes.

    Attributes:
        gflops: multiply-accumulates, in units of 1e9 (the convention of ptflops).
        params_m: parameters, in units of 1e6.
        fps_1080ti: pictures a second on a GTX 1080 Ti, batch 1.
        miou: mean intersection over union on the validation set, in per cent.
    """

    gflops: float
    params_m: float
    fps_1080ti: float
    miou: float


@dataclass(frozen=True)
class Variant:
    """One network of the family.

    Attributes:
        title: as the authors write it.
        description: one sentence.
        switches: keyword arguments of `FASSDNet`.
        published: the authors' figures, where they gave any.
        cityscapes: file name of the authors' trained weights (19 classes, alpha 2), if any.
    """

    title: str
    description: str
    switches: Mapping[str, Any] = field(default_factory=dict)
    published: Published | None = None
    cityscapes: str | None = None

    def build(self, num_classes: int = 19, alpha: int = 2) -> FASSDNet:
        """The network with freshly initialised weights, in training mode."""
        return FASSDNet(num_classes, alpha, **self.switches)


VARIANTS: dict[str, Variant] = {
    "fassd_net": Variant(
        "FASSD-Net",
        "The full network: HarDNet encoder, DAPF on the coarsest map, MDA in the decoder.",
        published=Published(45.1, 2.85, 41.1, 78.2),
        cityscapes="FASSD-Net-Cityscapes.pkl",
    ),
    "fassd_net_l1": Variant(
        "FASSD-Net-L1",
        "The full network with a first stem stride of 3: the same weights' shapes, smaller maps.",
        {"stem_strides": (3, 1, 2, 1)},
        cityscapes="FASSD-Net-L1-Cityscapes.pkl",
    ),
    "fassd_net_l2": Variant(
        "FASSD-Net-L2",
        "Three strided stem convolutions, and plain 3x3 layers in place of the decoder's blocks.",
        {"stem_strides": (2, 2, 2, 1), "light_decoder": True},
        cityscapes="FASSD-Net-L2-Cityscapes.pkl",
    ),
    "fc_hardnet_70": Variant(
        "FC-HarDNet-70",
        "The network that FASSD-Net starts from: one stage more, neither DAPF nor MDA.",
        {"context": "none", "mda": False, "stages": FIVE_STAGES},
        published=Published(35.4, 4.1, 52.3, 76.4),
    ),
    "baseline": Variant(
        "Baseline",
        "FASSD-Net without DAPF and MDA.",
        {"context": "none", "mda": False},
        published=Published(32.9, 1.9, 56.3, 75.2),
    ),
    "baseline_aspp": Variant(
        "Baseline + ASPP",
        "DeepLabV3's ASPP (reconstructed from the published counts) in DAPF's place, no MDA.",
        {"context": "aspp", "mda": False},
        published=Published(36.8, 3.85, 50.2, 75.8),
    ),
    "baseline_dapf": Variant(
        "Baseline + DAPF",
        "FASSD-Net without MDA.",
        {"mda": False},
        published=Published(33.9, 2.36, 53.9, 77.7),
    ),
    "baseline_mda": Variant(
        "Baseline + MDA",
        "FASSD-Net without DAPF.",
        {"context": "none"},
        published=Published(44.2, 2.38, 42.2, 77.4),
    ),
    "baseline_aspp_mda": Variant(
        "Baseline + ASPP + MDA",
        "FASSD-Net with ASPP (reconstructed from the published counts) in DAPF's place.",
        {"context": "aspp"},
        published=Published(48.0, 4.33, 39.1, 76.8),
    ),
}


def list_models() -> list[str]:
    """The names that `create_model` accepts."""
    return list(VARIANTS)


def get_variant(name: str) -> Variant:
    """The registry's entry of `name`.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(str(name).lower(), VARIANTS, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown model {name!r}, known are {', '.join(VARIANTS)}{guess}")


def create_model(
    name: str,
    num_classes: int | None = None,
    alpha: int | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> FASSDNet:
    """Build a network of the family in plain PyTorch, on the default device, in training mode.

    Args:
        name: one of `list_models()`.
        num_classes: channels of the output; None for those of the weights' file if it says so, as
            the files of `fassd train` do, else 19.
        alpha: how much narrower DAPF's branches are than the coarsest map; an integer from 1 to
            that map's width (224; fc_hardnet_70: 320). Without effect where there is no DAPF. None
            for that of the weights' file if it says so, else 2.
        weights: what to start from:

            * ``None``: Kaiming normal convolutions, batch norm 1 and 0 (`layers.init_weights`);
            * a path, read by `load_checkpoint`;
            * ``"synthetic"``: ours, in the package (fassd_net and fassd_net_l2 at 19 classes and
              alpha 2), trained on generated street scenes alone: good for trying things out and
              for measuring agreement, not for photographs;
            * ``"cityscapes"``: the authors' trained file (fassd_net, fassd_net_l1 and fassd_net_l2
              at 19 classes and alpha 2), downloaded once by `weights.fetch`;
            * ``"imagenet"``: the authors' ImageNet encoder, likewise; the rest stays as with
              ``None``.

            The downloaded weights are the work of FASSD-Net's authors, who published them without
            a licence; this project's licence does not cover them.

    Returns:
        A `FASSDNet`: (N, 3, H, W) normalised BGR to logits (N, num_classes, H, W).

    Raises:
        ValueError: an unknown name, an argument outside its range or other than the weights' file
            says, or weights that were not published for this variant.
        CheckpointError: a weights file that does not fit.
        FileNotFoundError: no such weights file.
        DownloadError: a download that failed; the message says where to put the file by hand.
    """
    variant = get_variant(name)
    _, num_classes, alpha = settled(weights, name, num_classes, alpha)
    model = variant.build(num_classes, alpha)
    remember(model, NetworkInfo(name, alpha))
    if weights is None:
        return model
    if weights in ("cityscapes", "synthetic") and (num_classes, alpha) != (19, 2):
        raise ValueError(
            f"weights={weights!r} has 19 classes and alpha 2, asked for were "
            f"num_classes={num_classes} and alpha={alpha}; weights='imagenet' starts any of them "
            "from a trained encoder"
        )
    load_checkpoint(model, weights_file(name, weights))
    return model


def load(path: str | os.PathLike[str]) -> FASSDNet:
    """The network in a file of `fassd train`, in eval mode, with its classes' names and colours.

    >>> model = fassd.load("runs/a/best.safetensors")

    Args:
        path: ``best.safetensors`` or ``last.safetensors`` of a run.

    Raises:
        CheckpointError: a file that cannot be read, or that does not say which network it holds.
        ValueError: what it says cannot be understood.
        FileNotFoundError: no such file.
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
    """Whether what stands for a network's name is a file of weights."""
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
    """Name, number of classes and alpha: as asked for, as the weights' file says, or the defaults.

    Raises:
        ValueError: what is asked for is not what the file says, the message names both; or what it
            says cannot be understood.
    """
    info = None
    if weights is not None and weights not in ("synthetic", "cityscapes", "imagenet"):
        info = read_info(weights)
    if info is None:
        return (
            model or "fassd_net",
            default_classes if num_classes is None else num_classes,
            2 if alpha is None else alpha,
        )
    known = (info.model, info.num_classes, info.alpha)
    asked = {"model": model, "classes": num_classes, "alpha": alpha}
    for (what, value), own in zip(asked.items(), known, strict=True):
        if value not in (None, own):
            raise ValueError(
                f"{weights} holds {info.model} of {info.num_classes} classes and alpha "
                f"{info.alpha}; asked for was {what} {value}"
            )
    return known


def weights_file(name: str, weights: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Where the weights are that `create_model` would load; the authors' are downloaded.

    Raises:
        ValueError: weights that were not published for this variant.
        DownloadError: a download that failed.
    """
    if weights == "imagenet":
        return weight_files.fetch("imagenet_weights.pth")
    if weights == "cityscapes":
        files = {known: v.cityscapes for known, v in VARIANTS.items() if v.cityscapes}
        return weight_files.fetch(files[_published(name, weights, files)])
    if weights == "synthetic":
        return weight_files.shipped(_published(name, weights, weight_files.SHIPPED))
    return weights


def _published(name: str, weights: str | os.PathLike[str], files: Mapping[str, str]) -> str:
    if name not in files:
        raise ValueError(
            f"weights={weights!r}: none were published for {name!r}, only for {', '.join(files)}"
        )
    return name


def default_weights(name: str, num_classes: int = 19, alpha: int = 2) -> str | None:
    """What commands use where no weights are given: "synthetic" if that fits, else None."""
    fits = name in weight_files.SHIPPED and (num_classes, alpha) == (19, 2)
    return "synthetic" if fits else None
