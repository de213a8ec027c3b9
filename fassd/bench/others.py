"""Other networks with the same job, as maintained packages carry them; none is written here.

They are built for their speed and size, with random weights: nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fassd.models.encoder import import_torchvision

__all__ = ["CLASSES", "OTHERS", "OtherNetwork"]

CLASSES = 19


@dataclass(frozen=True)
class OtherNetwork:
    """A published architecture.

    Attributes:
        key: what `--only` calls it.
        title: as its authors write it.
        install: the command that brings the package.
        build: makes it, in eval mode: (N, 3, H, W) float32 to logits (N, 19, H, W).
    """

    key: str
    title: str
    install: str
    build: Callable[[], nn.Module]


class FullSize(nn.Module):
    """A network whose logits are enlarged to its picture's size, as its own inference does.

    Args:
        network: any.
        logits: the network and a picture to logits (N, classes, h, w).
        align_corners: of the enlarging.

    Shape: (N, 3, H, W) to (N, classes, H, W).
    """

    def __init__(
        self, network: nn.Module, logits: Callable[[Any, Tensor], Tensor], align_corners: bool
    ) -> None:
        super().__init__()
        self.network, self.logits, self.align_corners = network, logits, align_corners

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        logits = self.logits(self.network, x)
        return F.interpolate(logits, size, None, "bilinear", self.align_corners)


def segformer() -> nn.Module:
    """SegFormer-B0, Xie et al., NeurIPS 2021, by Hugging Face transformers, whose default it is."""
    import_torchvision()  # which transformers imports where there is one
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    settings = SegformerConfig.from_dict({"num_labels": CLASSES})
    network = SegformerForSemanticSegmentation(settings)
    return FullSize(network, lambda model, x: model(x).logits, align_corners=False)


def from_config(config: str) -> nn.Module:
    """A network by a configuration of OpenMMLab's package, a path below its folder of them."""
    import mmseg.models  # registers what configurations name
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
    """Change settings of a whole network: one device, no pretrained weights, no auxiliary heads."""
    settings["data_preprocessor"] = None
    settings.pop("auxiliary_head", None)
    without_weights(settings)


def without_weights(settings: Any) -> None:
    """Name no weights anywhere in nested settings, and batch norm of one device."""
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


# Their compiled operators, which take long to build, serve none of these networks.
MMSEG = (
    "MMCV_WITH_OPS=0 pip install --no-build-isolation onedl-mmsegmentation onedl-mmcv ftfy regex"
)
TRANSFORMERS = "pip install transformers"

OTHERS = (
    OtherNetwork(
        "pidnet_s",
        "PIDNet-S",
        MMSEG,
        partial(from_config, "pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py"),
    ),
    OtherNetwork(
        "ddrnet_23_slim",
        "DDRNet-23-slim",
        MMSEG,
        partial(from_config, "ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"),
    ),
    OtherNetwork(
        "bisenetv2",
        "BiSeNetV2",
        MMSEG,
        partial(from_config, "bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py"),
    ),
    OtherNetwork("segformer_b0", "SegFormer-B0", TRANSFORMERS, segformer),
)
"""Xu et al., CVPR 2023; Hong et al., 2021; Yu et al., IJCV 2021; Xie et al., NeurIPS 2021."""
