"""The encoder-decoder that all variants share: HarDNet encoder, context module, decoder.

Source: Rosas-Arias et al., "FASSD-Net: Fast and Accurate Real-Time Semantic Segmentation for
Embedded Systems", IEEE T-ITS 2021, on the encoder and decoder of FC-HarDNet (Chao et al.,
"HarDNet: A Low Memory Traffic Network", ICCV 2019). An encoder of timm may take HarDNet's place
(`fassd.models.encoder`).

    picture - stem - block - block - block - block - context      / 2^: strides and poolings
                       |       |       |               |
              head - block - block - block ------------'          up, concat, 1x1, MDA, block
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fassd.models.aspp import ASPP
from fassd.models.dapf import DAPF, DILATIONS, checked_dilations
from fassd.models.encoder import STRIDES, Encoder
from fassd.models.hardnet import HarDBlock
from fassd.models.layers import ConvLayer, Rows, init_weights, positive_int, resize
from fassd.models.mda import MDA
from fassd.models.preprocess import MOST_BANDS, Preprocessing

Context = Literal["dapf", "aspp", "none"]

STEM_CHANNELS = (16, 24, 32, 48)
STEM_STRIDES = (2, 1, 2, 1)
WIDTH_MULTIPLIER = 1.7
LIGHT_DECODER_CHANNELS = 64


@dataclass(frozen=True)
class Stage:
    """One HarDBlock of the encoder and the 1x1 convolution to `channels` behind it."""

    channels: int
    growth_rate: int
    n_layers: int


FOUR_STAGES = (Stage(64, 10, 4), Stage(96, 16, 4), Stage(160, 18, 8), Stage(224, 24, 8))
FIVE_STAGES = (*FOUR_STAGES, Stage(320, 32, 8))

ENCODER_CHANNELS = (48, 78, 160, 224)
"""Channels of HarDNet's maps at strides 4 to 32. Maps of other encoders are projected to as many,
so that context and decoder cost the same."""


class FASSDNet(nn.Module):
    """FASSD-Net and its relatives; `fassd.create_model` knows them by name.

    The context module is ``DAPF`` and the decoder's refinement ``mda[i]`` whatever their type
    (identities in the baselines), so that a part is replaced by assigning to its attribute.

    Args:
        num_classes: number of channels of the output.
        alpha: factor by which DAPF's branches are narrower; from 1 to the coarsest width (224, or
            320 with five stages). It is always checked, and unused if `context` is not "dapf".
        dilations: dilations of DAPF's three asymmetric branches; checked likewise.
        context: module on the coarsest map: "dapf", "aspp" or "none".
        mda: True puts an `MDA` behind each 1x1 of the decoder, at dilation 2 on the finest skip,
            doubling towards the coarse end.
        stem_strides: strides of the four 3x3 convolutions that come first.
        light_decoder: True puts a 3x3 `ConvLayer` to 64 channels in place of each decoder
            HarDBlock.
        stages: stages of the encoder, fine to coarse, with 2x2 average pooling between them.
        encoder: name of an encoder of timm, in place of HarDNet's (`fassd.models.encoder.Encoder`);
            `stem_strides` and `stages`, which describe HarDNet's, then stay at their defaults.
        pretrained: True starts that encoder from timm's own weights.
        in_channels: number of channels of the input; any number other than 3 means bands,
            normalised by a mean of 0.5 and a deviation of 0.25 of the largest value unless the
            attribute `preprocessing`, which the network then has, says otherwise.

    Shape: (N, in_channels, H, W), floating, to logits (N, num_classes, H, W). The
        input is BGR, normalised with mean 255 * [.406, .456, .485] and deviation 255 * [.225, .224,
        .229]; with another encoder it is normalised as for that encoder's weights
        (`fassd.models.preprocessing_of`). H and W need not be a multiple of anything, but must
        reach `minimum_size`.

    Raises:
        ValueError: an argument, or in `forward` a tensor, is not as described above; the message
            names what came and what is accepted.
    """

    in_channels = 3  # for networks pickled before other numbers were possible

    def __init__(
        self,
        num_classes: int = 19,
        alpha: int = 2,
        *,
        context: Context = "dapf",
        mda: bool = True,
        stem_strides: Sequence[int] = STEM_STRIDES,
        light_decoder: bool = False,
        stages: Sequence[Stage] = FOUR_STAGES,
        dilations: Sequence[int] = DILATIONS,
        encoder: str | None = None,
        pretrained: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels, at_most=MOST_BANDS)
        if in_channels != 3:
            self.preprocessing = Preprocessing.of_bands(in_channels)
        self._num_classes = positive_int("num_classes", num_classes)
        self.alpha = positive_int("alpha", alpha, at_most=stages[-1].channels)
        dilations = checked_dilations(dilations)
        self.stem_strides = tuple(stem_strides)
        self.n_stages = len(stages)

        self.base: Any
        self.skip_layers: tuple[int, ...] = ()  # positions in base where the skips leave
        if encoder is None:
            if pretrained:
                raise ValueError("pretrained needs an encoder of timm, and no encoder is given")
            self.base = nn.ModuleList()
            skip_channels = self._build_encoder(stages)
        else:
            if (self.stem_strides, tuple(stages)) != (STEM_STRIDES, FOUR_STAGES):
                raise ValueError(
                    f"encoder={encoder!r} takes the place of HarDNet with its stem and stages: it "
                    "goes with FASSD-Net and its baselines, not with L1, L2 and FC-HarDNet"
                )
            self.base = Encoder(encoder, ENCODER_CHANNELS, pretrained, in_channels)
            skip_channels = list(ENCODER_CHANNELS[:-1])
        self.DAPF = _context_module(context, stages[-1].channels, self.alpha, dilations)
        self.denseBlocksUp = nn.ModuleList()
        self.conv1x1_up = nn.ModuleList()
        self.mda = nn.ModuleList()
        channels = self._build_decoder(stages, skip_channels, mda, light_decoder)
        self.finalConv = nn.Conv2d(channels, self._num_classes, 1)
        self.initialize(init_weights)

    def initialize(self, init: Callable[[nn.Module], object]) -> None:
        """Call `init` with every module, except those of an encoder of timm, which keeps timm's
        initialisation."""
        theirs = set(self.base.body.modules()) if isinstance(self.base, Encoder) else set()
        for module in self.modules():
            if module not in theirs:
                init(module)

    def _build_encoder(self, stages: Sequence[Stage]) -> list[int]:
        """Fill `base`; return the channels of the skips, fine to coarse."""
        skip_channels = []
        channels = self.in_channels
        for width, stride in zip(STEM_CHANNELS, self.stem_strides, strict=True):
            self.base.append(ConvLayer(channels, width, stride=stride))
            channels = width
        skip_layers = []
        for level, stage in enumerate(stages, start=1):
            block = HarDBlock(channels, stage.growth_rate, WIDTH_MULTIPLIER, stage.n_layers)
            channels = stage.channels
            self.base.extend([block, ConvLayer(block.out_channels, channels, 1)])
            if level < len(stages):
                skip_channels.append(block.out_channels)
                skip_layers.append(len(self.base) - 2)
                self.base.append(nn.AvgPool2d(2))
        self.skip_layers = tuple(skip_layers)
        return skip_channels

    def _build_decoder(
        self, stages: Sequence[Stage], skip_channels: list[int], mda: bool, light: bool
    ) -> int:
        """Fill the decoder's lists, coarse to fine; return its final number of channels."""
        channels = stages[-1].channels
        for level in reversed(range(len(skip_channels))):
            channels += skip_channels[level]
            self.conv1x1_up.append(ConvLayer(channels, channels // 2, 1))
            channels //= 2
            self.mda.append(MDA(channels, 2 ** (level + 1)) if mda else nn.Identity())
            if light:
                self.denseBlocksUp.append(ConvLayer(channels, LIGHT_DECODER_CHANNELS))
                channels = LIGHT_DECODER_CHANNELS
            else:
                stage = stages[level]
                block = HarDBlock(channels, stage.growth_rate, WIDTH_MULTIPLIER, stage.n_layers)
                self.denseBlocksUp.append(block)
                channels = block.out_channels
        return channels

    @property
    def num_classes(self) -> int:
        """Number of channels of the output, read from the head, even if the head was replaced.

        If the head has no convolution, the value assigned last is returned.
        """
        convolutions = [part for part in self.finalConv.modules() if hasattr(part, "out_channels")]
        if not convolutions:
            return self._num_classes
        last: Any = convolutions[-1]
        # The weight decides, in case it was sliced by hand.
        cut = isinstance(last, nn.Conv2d) and not is_lazy(last.weight)
        return len(last.weight) if cut else last.out_channels

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        self._num_classes = positive_int("num_classes", value)

    @property
    def minimum_size(self) -> int:
        """The smallest H and W, in pixels, at which the coarsest map still has a pixel.

        A padded 3x3 at stride s turns n pixels into ceil(n / s), a 2x2 pooling into floor(n / 2).
        Encoders other than HarDNet take pictures from the size of their coarsest stride on.
        """
        if isinstance(self.base, Encoder):
            return STRIDES[-1]
        return prod(self.stem_strides) * (2 ** (self.n_stages - 1) - 1) + 1

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        return resize(self._scores(x), (x.shape[2], x.shape[3]))

    def _scores(self, x: Tensor, begin: int = 0) -> Tensor:
        """Logits of the finest map, (N, num_classes, h, w), from the input of the encoder, or of
        its layer `begin`."""
        maps = self.encode(x, begin)
        x = self.DAPF(maps.pop())
        for level in range(len(self.conv1x1_up)):
            x = self.refine(level, x, maps.pop())
        return self.finalConv(x)

    def refine(self, level: int, low: Tensor, skip: Tensor, rows: Rows | None = None) -> Tensor:
        """A level of the decoder: the map `low`, resized, and the skip to a finer map.

        `rows` gives the position of the two if they are strips of maps.
        """
        # Each intermediate result is freed before the next but one is made.
        x = torch.cat([resize(low, (skip.shape[2], skip.shape[3]), rows), skip], 1)
        x = self.conv1x1_up[level](x)
        x = self.mda[level](x)
        return self.denseBlocksUp[level](x)

    def encode(self, x: Tensor, begin: int = 0) -> list[Tensor]:
        """The encoder's maps, fine to coarse: the skips, and the input of the context module.

        `x` is the input of layer `begin`; encoders other than HarDNet begin at 0.
        """
        if isinstance(self.base, Encoder):
            found = self.base(x)
            return [found[index] for index in range(len(self.conv1x1_up) + 1)]
        maps = []
        for end in self.ends():
            x = self.encode_part(x, begin, end)
            maps.append(x)
            begin = end
        return maps

    def ends(self) -> list[int]:
        """Number of HarDNet's layers after which each of the maps is complete."""
        return [*(layer + 1 for layer in self.skip_layers), len(self.base)]

    def encode_part(self, x: Tensor, begin: int, end: int) -> Tensor:
        """The output of layers [begin, end) of HarDNet for the input `x`."""
        for index in range(begin, end):
            x = self.base[index](x)
        return x

    @staticmethod
    def from_pretrained(name: str | os.PathLike[str], **options: Any) -> FASSDNet:
        """A network from the Hugging Face hub, or from a folder that `save_pretrained` wrote.

        >>> model = FASSDNet.from_pretrained("owner/name")

        Args:
            name: name of the repository, or path of a folder.
            options: ``revision``, ``token``, ``cache_dir``, ``force_download`` and
                ``local_files_only`` of a repository, as huggingface_hub takes them.

        Returns:
            A plain network in eval mode, with its classes, colours, normalisation and temperature.

        Raises:
            CheckpointError: another library's network, or a damaged one; the message names the
                file.
            DownloadError: the repository cannot be had.
            ValueError: a name that is neither.
            ImportError: huggingface_hub, or timm for an encoder of it, is missing; the message says
                how to install it.
        """
        network: FASSDNet = _hub().load(name, **options)
        return network

    def save_pretrained(self, folder: str | os.PathLike[str], card: str | None = None) -> None:
        """Write the network into a folder as the Hugging Face hub has it.

        ``config.json`` says which network it is, its classes, colours and normalisation,
        ``model.safetensors`` is a file of weights like those of `fassd train`, ``README.md`` the
        model card.

        Args:
            folder: made if it is missing.
            card: text of the model card, such as `fassd.training.model_card` gives of a run; None
                leaves one that is there, and else writes one of the network alone.

        Raises:
            ValueError: the network was not made by name (`fassd.create_model`, `fassd.load`), or
                was rebuilt since.
            ImportError: huggingface_hub is missing; the message says how to install it.
            OSError: the folder cannot be written to.
        """
        _hub().HubNetwork(self, card).save_pretrained(folder)

    def push_to_hub(self, repo_id: str, card: str | None = None, **options: Any) -> str:
        """Publish the network on the Hugging Face hub.

        >>> model.push_to_hub("owner/name", card, private=True)

        Args:
            repo_id: name of the repository, which is made if it is missing.
            card: text of the card, as in `save_pretrained`.
            options: ``private``, ``token``, ``commit_message``, ``branch`` and ``create_pr``, as
                huggingface_hub takes them.

        Returns:
            The address of the commit.

        Raises:
            ValueError, ImportError: as `save_pretrained`.
            OSError: the hub cannot be reached, or refuses.
        """
        published = _hub().HubNetwork(self, card)
        url: str = published.push_to_hub(repo_id, model_card_kwargs={"name": repo_id}, **options)
        return url

    def _check_input(self, x: Tensor) -> None:
        if isinstance(x, torch.fx.Proxy):  # a symbolic trace knows neither size nor type
            return
        count = self.in_channels
        if x.dim() != 4 or x.shape[1] != count:
            raise ValueError(f"the input must have shape (N, {count}, H, W), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"the input must be a normalised floating tensor, got {x.dtype}")
        if x.shape[2] < self.minimum_size or x.shape[3] < self.minimum_size:
            raise ValueError(
                f"the input must be at least {self.minimum_size}x{self.minimum_size} pixels for "
                f"this variant, got {x.shape[2]}x{x.shape[3]}"
            )

    def extra_repr(self) -> str:
        of_hardnet = f"stem_strides={self.stem_strides}, "
        return (
            f"num_classes={self.num_classes}, "
            f"{'' if isinstance(self.base, Encoder) else of_hardnet}"
            f"minimum_size={self.minimum_size}"
        )


def _hub() -> Any:
    """The file that knows the hub, by its name: it builds networks, and so imports this one."""
    try:
        return importlib.import_module(f"{__package__}.hub")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "huggingface_hub":
            raise
        raise ImportError(
            "the hub needs huggingface_hub, which is missing: pip install 'fassd-net[hub]'"
        ) from error


def _context_module(
    context: Context, channels: int, alpha: int, dilations: Sequence[int]
) -> nn.Module:
    if context == "dapf":
        return DAPF(channels, alpha, dilations)
    if context == "aspp":
        return ASPP(channels)
    if context == "none":
        return nn.Identity()
    raise ValueError(f"context must be 'dapf', 'aspp' or 'none', got {context!r}")
