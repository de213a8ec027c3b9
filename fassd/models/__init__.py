"""The FASSD-Net family in plain PyTorch.

`create_model` builds a network by name; the parts are exported for building networks of your own.
Names are imported when they are first used, so that preprocessing needs no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fassd.models.aspp import ASPP
    from fassd.models.checkpoint import LoadReport, load_checkpoint
    from fassd.models.dapf import DAPF
    from fassd.models.device import pick_device
    from fassd.models.hardnet import HarDBlock
    from fassd.models.info import NetworkInfo, info_of
    from fassd.models.layers import AsymmetricConv2d, BNPReLU, ConvBNPReLU, ConvLayer
    from fassd.models.mda import MDA
    from fassd.models.network import FASSDNet, Stage
    from fassd.models.preprocess import MEAN, STD, Preprocessing, normalize, preprocessing_of
    from fassd.models.tensor_files import CheckpointError
    from fassd.models.variants import VARIANTS, Published, Variant, get_variant, list_models
    from fassd.models.weights import DownloadError
    from fassd.models.zoo import create_model, load

_HOMES = {
    "aspp": ("ASPP",),
    "checkpoint": ("LoadReport", "load_checkpoint"),
    "dapf": ("DAPF",),
    "device": ("pick_device",),
    "hardnet": ("HarDBlock",),
    "info": ("NetworkInfo", "info_of"),
    "layers": ("AsymmetricConv2d", "BNPReLU", "ConvBNPReLU", "ConvLayer"),
    "mda": ("MDA",),
    "network": ("FASSDNet", "Stage"),
    "preprocess": ("MEAN", "STD", "Preprocessing", "normalize", "preprocessing_of"),
    "tensor_files": ("CheckpointError",),
    "variants": ("VARIANTS", "Published", "Variant", "get_variant", "list_models"),
    "weights": ("DownloadError",),
    "zoo": ("create_model", "load"),
}

__all__ = [
    "ASPP",
    "DAPF",
    "MDA",
    "MEAN",
    "STD",
    "VARIANTS",
    "AsymmetricConv2d",
    "BNPReLU",
    "CheckpointError",
    "ConvBNPReLU",
    "ConvLayer",
    "DownloadError",
    "FASSDNet",
    "HarDBlock",
    "LoadReport",
    "NetworkInfo",
    "Preprocessing",
    "Published",
    "Stage",
    "Variant",
    "create_model",
    "get_variant",
    "info_of",
    "list_models",
    "load",
    "load_checkpoint",
    "normalize",
    "pick_device",
    "preprocessing_of",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
