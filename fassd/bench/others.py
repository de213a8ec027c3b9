"""Networks of other projects: any module, timm's encoders, segmentation_models_pytorch.

A job names one by a text with a colon: ``package.module:factory``, ``timm:NAME`` or
``smp:ARCH/ENCODER``. Weights are random, unless a factory loads some: nothing is downloaded.
`OTHERS` are published architectures, from maintained packages; none is implemented here.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fassd.io.packages import need
from fassd.models.encoder import import_timm, import_torchvision, plan_of
from fassd.models.variants import GTX, PublishedScore

CLASSES = 19
TIMM, SMP = "timm:", "smp:"

# -------------------------------------------------------------------------------- networks by name


def is_other(model: str) -> bool:
    """True if a job's model is a network of another project."""
    return ":" in model


def runs_foreign_code(model: str) -> bool:
    """True if building a job's model imports a module that its name alone selects."""
    known = {network.model for network in OTHERS}
    return is_other(model) and not model.startswith((TIMM, SMP)) and model not in known


def build_other(model: str) -> nn.Module:
    """Build a network of another project, in eval mode.

    Its output is a tensor (N, classes, ...), or several: timm's encoders return a map at each of
    the strides 4, 8, 16 and 32.

    Raises:
        ValueError: there is no such factory, architecture or encoder, in which case the message
            offers the nearest names; or the factory does not return a module.
        ImportError: a package is missing; the message says how to install it.
    """
    kind, name = model[: model.index(":") + 1], model[model.index(":") + 1 :]
    builders = {TIMM: from_timm, SMP: from_smp}
    network = builders[kind](name) if kind in builders else from_factory(model)
    return network.eval()


def from_factory(place: str) -> nn.Module:
    """Call a function without arguments; errors as in `build_other`.

    Args:
        place: location ``package.module:factory``; modules in the working folder are found as well.
    """
    module_name, _, factory = place.partition(":")
    if not module_name or not factory:
        raise ValueError(f"{place!r} is not package.module:factory")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ImportError(f"{place}: {module_name} cannot be imported: {error}") from error
    if not hasattr(module, factory):
        near = nearest(factory, [name for name in dir(module) if not name.startswith("_")])
        raise ValueError(f"{place}: {module_name} has no {factory}{near}")
    found = getattr(module, factory)
    network = found() if callable(found) and not isinstance(found, nn.Module) else found
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise ValueError(f"{place} gives a {kind}; expected a torch.nn.Module")
    return network


def from_timm(name: str) -> nn.Module:
    """An encoder of timm, to its maps at strides 4, 8, 16 and 32; errors as in `build_other`."""
    timm = import_timm()
    from timm.models import reparameterize_model

    return reparameterize_model(timm.create_model(name, **plan_of(name).options).eval())


def from_smp(place: str) -> nn.Module:
    """A network of segmentation_models_pytorch: ARCH/ENCODER; errors as in `build_other`."""
    architecture, _, encoder = place.partition("/")
    if not architecture or not encoder:
        raise ValueError(f"{place!r} is not ARCH/ENCODER, such as Unet/resnet18")
    import_torchvision()  # which the package imports
    smp = need("segmentation_models_pytorch", f"{SMP}{place} needs", "smp")
    known = {found.__name__.lower(): found for found in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    kind = known.get(architecture.lower())
    if kind is None:
        near = nearest(architecture, [found.__name__ for found in known.values()])
        raise ValueError(f"segmentation_models_pytorch has no architecture {architecture!r}{near}")
    names = smp.encoders.get_encoder_names()
    if encoder not in names and not encoder.startswith("tu-"):  # timm's, by any name
        near = nearest(encoder, names)
        raise ValueError(f"segmentation_models_pytorch has no encoder {encoder!r}{near}")
    return kind(encoder_name=encoder, encoder_weights=None, classes=CLASSES)


def nearest(name: str, known: Sequence[str]) -> str:
    """End of an error's sentence: known names that resemble an unknown one."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3)
    return f"; did you mean {' or '.join(by_lower[each] for each in near)}?" if near else ""


# ------------------------------------------------------------------------- published architectures


@dataclass(frozen=True)
class OtherNetwork:
    """A published architecture, with 19 classes.

    Attributes:
        title: name as its authors write it.
        model: name in a job.
        package: module that contains it.
        install: command that installs the package.
        reports: published frames per second.
    """

    title: str
    model: str
    package: str
    install: str
    reports: tuple[PublishedScore, ...] = ()

    @property
    def missing(self) -> str:
        """The command to install its package; empty if it is installed."""
        return "" if importlib.util.find_spec(self.package) else self.install


class FullSize(nn.Module):
    """A network whose logits are enlarged to the picture's size, as in its own inference.

    Args:
        network: any network.
        logits: function from the network and a picture to logits (N, classes, h, w).
        align_corners: alignment for enlarging; None if the network itself enlarges them.

    Shape: (N, 3, H, W) to (N, classes, H, W).
    """

    def __init__(
        self,
        network: nn.Module,
        logits: Callable[[Any, Tensor], Tensor],
        align_corners: bool | None,
    ) -> None:
        super().__init__()
        self.network, self.logits, self.align_corners = network, logits, align_corners

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        logits = self.logits(self.network, x)
        if self.align_corners is None:
            return logits
        return F.interpolate(logits, size, None, "bilinear", self.align_corners)


def segformer_b0() -> nn.Module:
    """SegFormer-B0, Xie et al., NeurIPS 2021, the default of Hugging Face transformers."""
    import_torchvision()  # which transformers imports if it is installed
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    settings = SegformerConfig.from_dict({"num_labels": CLASSES})
    network = SegformerForSemanticSegmentation(settings)
    return FullSize(network, lambda model, x: model(x).logits, align_corners=False)


def from_torchvision(name: str) -> nn.Module:
    """A network of torchvision for semantic segmentation, by its function's name."""
    import_torchvision()
    from torchvision.models import segmentation

    build = getattr(segmentation, name)
    network = build(weights=None, weights_backbone=None, num_classes=CLASSES)
    return FullSize(network, lambda model, x: model(x)["out"], align_corners=None)


def from_config(config: str) -> nn.Module:
    """A network by a configuration in OpenMMLab's package, a path below its folder of them."""
    import_torchvision()
    import mmseg.models  # registers the names in configurations
    from mmengine.config import Config
    from mmseg.registry import MODELS

    folder = Path(mmseg.__file__).parent / ".mim" / "configs"
    settings = Config.fromfile(folder / config).model.to_dict()
    prepare_for_inference(settings)
    network = MODELS.build(settings)
    return FullSize(
        network,
        lambda model, x: model.decode_head(model.extract_feat(x)),
        network.decode_head.align_corners,
    )


def prepare_for_inference(settings: dict[str, Any]) -> None:
    """Adapt a whole network's settings: one device, no pretrained weights, no auxiliary heads."""
    settings["data_preprocessor"] = None
    settings.pop("auxiliary_head", None)
    without_weights(settings)


def without_weights(settings: Any) -> None:
    """Remove weights from nested settings, and use batch norm of one device."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key in ("init_cfg", "pretrained"):
                settings[key] = None
            elif key == "type" and value == "SyncBN":
                settings[key] = "BN"
            else:
                without_weights(value)
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            without_weights(value)


pidnet_s = partial(from_config, "pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py")
ddrnet_23_slim = partial(
    from_config, "ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"
)
bisenetv2 = partial(from_config, "bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py")
deeplabv3_resnet50 = partial(from_torchvision, "deeplabv3_resnet50")
lraspp_mobilenet_v3_large = partial(from_torchvision, "lraspp_mobilenet_v3_large")

# If it is built in isolation, without torch, onedl-mmcv leaves out its compiled operators, which
# take long to build and which none of these networks use.
MMSEG = "pip install onedl-mmsegmentation onedl-mmcv ftfy regex"
_here = f"{__name__}:"
_mmseg = partial(OtherNetwork, package="mmseg", install=MMSEG)
_torchvision = partial(OtherNetwork, package="torchvision", install="pip install torchvision")

OTHERS = (
    _mmseg(
        "DDRNet-23-slim",
        f"{_here}ddrnet_23_slim",
        reports=(
            PublishedScore("abstract, Hong et al., 2021", "1024x2048", 77.4, 102, "RTX 2080 Ti"),
        ),
    ),
    _mmseg(
        "PIDNet-S",
        f"{_here}pidnet_s",
        reports=(PublishedScore("Xu et al., CVPR 2023", "1024x2048", 78.6, 93.2, "RTX 3090"),),
    ),
    _mmseg(
        "BiSeNetV2",
        f"{_here}bisenetv2",
        reports=(PublishedScore("abstract, Yu et al., IJCV 2021", "512x1024", 72.6, 156, GTX),),
    ),
    OtherNetwork(
        "U-Net, ResNet-18",
        f"{SMP}Unet/resnet18",
        "segmentation_models_pytorch",
        "pip install 'fassd-net[smp]'",
    ),
    _torchvision("DeepLabV3, ResNet-50", f"{_here}deeplabv3_resnet50"),
    _torchvision("LR-ASPP, MobileNetV3", f"{_here}lraspp_mobilenet_v3_large"),
    OtherNetwork(
        "SegFormer-B0",
        f"{_here}segformer_b0",
        "transformers",
        "pip install transformers",
        (
            PublishedScore(
                "Xie et al., NeurIPS 2021, table 2", "1024x2048", 76.2, 15.2, "Tesla V100"
            ),
        ),
    ),
)
"""The `data` of their reports is the size of the network's picture."""


def published(model: str) -> list[str]:
    """Published frames per second of a job's network: one sentence each."""
    reports = [report for network in OTHERS if network.model == model for report in network.reports]
    return [
        f"published: {report.fps:g} frames/s at {report.data} on {report.device} ({report.source})"
        for report in reports
    ]
