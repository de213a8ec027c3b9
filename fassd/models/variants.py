"""The named variants: one registry, one entry each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fassd.models.dapf import DILATIONS, checked_dilations
from fassd.models.encoder import preprocessing_for
from fassd.models.layers import positive_int
from fassd.models.network import FIVE_STAGES, FASSDNet
from fassd.models.preprocess import OURS, Preprocessing


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


TALK = "talk of the authors"
ICPR = "abstract, ICPR 2020"  # doi.org/10.1109/ICPR48806.2021.9413176
T_ITS = "abstract, IEEE T-ITS 2021"
FC_HARDNET = "its authors"  # github.com/PingoLH/FCHarDNet, README
PADDLE_SEG = "PaddleSeg"  # github.com/PaddlePaddle/PaddleSeg, configs/hardnet
VAL, TEST, CAMVID = "Cityscapes val", "Cityscapes test", "CamVid"
GTX, JETSON = "GTX 1080 Ti", "Jetson Xavier NX"


@dataclass(frozen=True)
class PublishedScore:
    """A published score of a network.

    Attributes:
        source: publication or page with the score.
        data: data set and split; "Cityscapes" where the source names no split.
        miou: mean intersection over union, in per cent.
        fps: pictures a second on `device`, at full resolution; None where the source gives none.
    """

    source: str
    data: str
    miou: float
    fps: float | None = None
    device: str = ""


@dataclass(frozen=True)
class Variant:
    """One network of the family.

    Attributes:
        title: name as the authors write it.
        description: one sentence about the network.
        switches: keyword arguments of `FASSDNet`.
        published: the authors' figures from their talk, if they gave any.
        reports: further published scores.
        by_analogy: True for a variant that was never published: this project made it after the
            others.
        cityscapes: file name of the authors' trained weights (19 classes, alpha 2), if any.
    """

    title: str
    description: str
    switches: Mapping[str, Any] = field(default_factory=dict)
    published: Published | None = None
    reports: tuple[PublishedScore, ...] = ()
    by_analogy: bool = False
    cityscapes: str | None = None

    def build(self, num_classes: int = 19, alpha: int = 2, *, pretrained: bool = False) -> FASSDNet:
        """The network with freshly initialised weights, in training mode.

        Args:
            num_classes, alpha, pretrained: as in `FASSDNet`.
        """
        return FASSDNet(num_classes, alpha, **self.switches, pretrained=pretrained)

    @property
    def encoder(self) -> str | None:
        """Name of its encoder in timm; None for HarDNet."""
        return self.switches.get("encoder")

    @property
    def preprocessing(self) -> Preprocessing:
        """The normalisation of the network's pictures.

        Raises:
            ValueError, ImportError: as in `Encoder`.
        """
        bands = self.switches.get("in_channels")
        if bands is not None:
            return Preprocessing.of_bands(bands)
        return OURS if self.encoder is None else preprocessing_for(self.encoder)


VARIANTS: dict[str, Variant] = {
    "fassd_net": Variant(
        "FASSD-Net",
        "The full network: HarDNet encoder, DAPF on the coarsest map, MDA in the decoder.",
        published=Published(45.1, 2.85, 41.1, 78.2),
        reports=(
            PublishedScore(ICPR, VAL, 78.8, 41.1, GTX),
            PublishedScore(T_ITS, "Cityscapes", 77.5, 41, GTX),
            PublishedScore(T_ITS, CAMVID, 69.3, 80, GTX),
        ),
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
        # The abstracts speak of "a light version" without naming it; L2 is the fastest.
        reports=(
            PublishedScore(ICPR, VAL, 74.1, 133.1, GTX),
            PublishedScore(T_ITS, "Cityscapes", 74.0, 32, JETSON),
        ),
        cityscapes="FASSD-Net-L2-Cityscapes.pkl",
    ),
    "fc_hardnet_70": Variant(
        "FC-HarDNet-70",
        "The network that FASSD-Net is based on: one stage more, neither DAPF nor MDA.",
        {"context": "none", "mda": False, "stages": FIVE_STAGES},
        published=Published(35.4, 4.1, 52.3, 76.4),
        reports=(
            PublishedScore(FC_HARDNET, VAL, 77.7),
            PublishedScore(FC_HARDNET, TEST, 75.9, 67, "Titan V"),
            PublishedScore(PADDLE_SEG, VAL, 79.0),
        ),
    ),
    "fc_hardnet_l1": Variant(
        "FC-HarDNet-L1",
        "Unpublished, by analogy: FC-HarDNet-70 with the stem of FASSD-Net-L1.",
        {"context": "none", "mda": False, "stages": FIVE_STAGES, "stem_strides": (3, 1, 2, 1)},
        by_analogy=True,
    ),
    "fc_hardnet_l2": Variant(
        "FC-HarDNet-L2",
        "Unpublished, by analogy: FC-HarDNet-70 with the stem and decoder of FASSD-Net-L2.",
        {
            "context": "none",
            "mda": False,
            "stages": FIVE_STAGES,
            "stem_strides": (2, 2, 2, 1),
            "light_decoder": True,
        },
        by_analogy=True,
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


FULL_NAME = re.compile(
    r"(?P<name>\w+)(@(?P<encoder>[\w.]+))?(?P<light>\+light)?(\+dilations(?P<dilations>\d+-\d+-\d+))?"
    r"(\+bands(?P<bands>[1-9]\d*))?",
    re.ASCII,
)


def full_name(
    name: str,
    encoder: str | None = None,
    light_decoder: bool = False,
    dilations: Sequence[int] | None = None,
    in_channels: int | None = None,
) -> str:
    """A network's name together with its options: one text for files, options and results.

    >>> full_name("fassd_net", "resnet18d", light_decoder=True, dilations=(6, 12, 18))
    'fassd_net@resnet18d+light+dilations6-12-18'

    Args:
        name: name of a variant, or a full name, to which the other arguments are added.
        encoder, light_decoder, dilations, in_channels: as in `fassd.create_model`.

    Raises:
        ValueError: an argument contradicts the name, or is invalid.
    """
    match = FULL_NAME.fullmatch(name)
    if match is None:
        if encoder is None and not light_decoder and dilations is None and in_channels is None:
            return name  # not a network's name, so it is left as it is
        raise ValueError(_unknown(name))
    if encoder is not None and not (
        isinstance(encoder, str) and re.fullmatch(r"[\w.]+", encoder, re.ASCII)
    ):
        raise ValueError(f"encoder must be a name of timm's, got {encoder!r}")
    wanted = None
    if dilations is not None:
        wanted = "-".join(map(str, checked_dilations(dilations)))
    bands = None if in_channels is None else str(positive_int("in_channels", in_channels))
    for what, asked, own in (
        ("encoder", encoder, match["encoder"]),
        ("dilations", wanted, match["dilations"]),
        ("in_channels", bands, match["bands"]),
    ):
        if None not in (asked, own) and asked != own:
            raise ValueError(f"{name!r} has {what} {own}, asked for was {asked}")
    encoder, wanted = encoder or match["encoder"], wanted or match["dilations"]
    bands = bands or match["bands"]
    return (
        match["name"]
        + (f"@{encoder}" if encoder else "")
        + ("+light" if light_decoder or match["light"] else "")
        + (f"+dilations{wanted}" if wanted not in (None, "-".join(map(str, DILATIONS))) else "")
        + (f"+bands{bands}" if bands not in (None, "3") else "")
    )


def list_models() -> list[str]:
    """The names that `create_model` accepts."""
    return list(VARIANTS)


def is_name(text: str) -> bool:
    """True if a text is the full name of a network; its encoder's name is not looked up."""
    match = FULL_NAME.fullmatch(text)
    return match is not None and match["name"] in VARIANTS


def get_variant(name: str) -> Variant:
    """The variant of a full name: an entry of the registry, with the options of that name applied.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    match = FULL_NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None or match["name"] not in VARIANTS:
        raise ValueError(_unknown(name))
    found = VARIANTS[match["name"]]
    switches, own = dict(found.switches), []
    if match["encoder"]:
        switches["encoder"] = match["encoder"]
        own.append(match["encoder"])
    if match["light"]:
        switches["light_decoder"] = True
        own.append("light decoder")
    if match["dilations"]:
        switches["dilations"] = checked_dilations([*map(int, match["dilations"].split("-"))])
        own.append(f"dilations {match['dilations']}")
    if match["bands"] not in (None, "3"):
        switches["in_channels"] = int(match["bands"])
        own.append(f"{match['bands']} bands")
    return replace(
        found,
        title=f"{found.title}, {', '.join(own)}",
        description=f"{found.title} with {', '.join(own)}.",
        switches=switches,
        published=None,
        reports=(),
        cityscapes=None,
    )


def _unknown(name: object) -> str:
    near = difflib.get_close_matches(re.split("[@+]", str(name).lower())[0], VARIANTS, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown model {name!r}, known are {', '.join(VARIANTS)}{guess}"
