"""The named variants: one registry, one entry each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
