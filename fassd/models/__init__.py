"""The FASSD-Net family in plain PyTorch.

`create_model` builds a network by name; the parts are here for networks of one's own.
"""

from fassd.models.aspp import ASPP
from fassd.models.checkpoint import CheckpointError, LoadReport, load_checkpoint
from fassd.models.dapf import DAPF
from fassd.models.hardnet import HarDBlock
from fassd.models.info import NetworkInfo, info_of
from fassd.models.layers import BNPReLU, ConvBNPReLU, ConvLayer
from fassd.models.mda import MDA
from fassd.models.network import FASSDNet, Stage
from fassd.models.weights import DownloadError
from fassd.models.zoo import (
    VARIANTS,
    Published,
    Variant,
    create_model,
    get_variant,
    list_models,
    load,
)

__all__ = [
    "ASPP",
    "DAPF",
    "MDA",
    "VARIANTS",
    "BNPReLU",
    "CheckpointError",
    "ConvBNPReLU",
    "ConvLayer",
    "DownloadError",
    "FASSDNet",
    "HarDBlock",
    "LoadReport",
    "NetworkInfo",
    "Published",
    "Stage",
    "Variant",
    "create_model",
    "get_variant",
    "info_of",
    "list_models",
    "load",
    "load_checkpoint",
]
