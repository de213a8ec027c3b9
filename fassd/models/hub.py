"""Networks on the Hugging Face hub, by huggingface_hub's mixin; imported when first asked for.

A repository, or a folder of the same files, holds

    config.json         which network it is, its classes, and how it takes pictures
    model.safetensors   its weights; by itself a file like those of `fassd train` (`fassd.load`)
    README.md           the model card

and reading it executes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import nn

from fassd.models.checkpoint import load_checkpoint
from fassd.models.info import NetworkInfo, info_of, read_info, remember
from fassd.models.network import FASSDNet
from fassd.models.preprocess import preprocessing_of
from fassd.models.replacing import replacing
from fassd.models.tensor_files import CheckpointError, check_regular, safetensors_of, shown
from fassd.models.variants import full_name, get_variant
from fassd.models.weights import DownloadError
from fassd.models.zoo import create_model

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"

MOST_CONFIG = 1 << 23
"""Bytes of a config.json that is read; 65,536 classes take less."""

MOST_LISTED = 8
"""Names of a folder's files that an error lists."""

OF_OTHERS = ("library_name", "model_type", "architectures", "architecture", "_class_name")
"""Entries by which other libraries' configurations tell whose they are."""

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ description }} It labels every pixel of a picture with one of {{ classes }} classes.

```python
import fassd
from fassd.models import FASSDNet

model = FASSDNet.from_pretrained("{{ name }}")
labels = fassd.Segmenter(model).predict("picture.jpg")  # (H, W) class indices
```

| | |
|---|---|
{% for what, value in facts -%}
| {{ what }} | {{ value }} |
{% endfor %}
{%- if names %}
| class | name | RGB |
|---:|---|---|
{% for index, class, color in names -%}
| {{ index }} | {{ class }} | {{ color }} |
{% endfor %}
{%- endif %}
{{- training }}
"""
"""Of a model card, in Jinja."""


class Score(NamedTuple):
    """A score of a network for its card, from 0 to 1."""

    data: str
    metric: str
    value: float


class HubNetwork(
    ModelHubMixin,
    library_name="fassd",
    pipeline_tag="image-segmentation",
    tags=["fassd-net", "semantic-segmentation", "real-time"],
):
    """A network as the mixin reads and writes it.

    The network itself is no subclass of the mixin's, so that it needs huggingface_hub only here.

    Args:
        network: a network of the family.
        card: text of its model card; None for `model_card` of the network alone.
    """

    def __init__(self, network: FASSDNet, card: str | None = None) -> None:
        self.network = network
        self.card = card

    def _save_pretrained(self, save_directory: Path) -> None:
        config = config_of(self.network)  # what cannot be saved is the first error
        own: dict[str, str] = {"format": "pt"}
        if config["classes"]:  # without them, a file does not tell its network
            own["fassd"] = json.dumps({"network": config})
        with replacing(save_directory / WEIGHTS) as file:
            file.write(safetensors_of(self.network.state_dict(), own))
        with replacing(save_directory / CONFIG) as file:
            file.write(json.dumps(config, indent=2).encode())
        if self.card is not None:
            with replacing(save_directory / CARD) as file:
                file.write(self.card.encode())

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        return ModelCard(model_card(self.network, *args, **kwargs))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **_: Any) -> HubNetwork:
        folder = Path(model_id)
        info, num_classes = described(folder)
        network = create_model(info.model, num_classes or None, info.alpha)
        report = load_checkpoint(network, folder / WEIGHTS)
        if report.missing:
            raise CheckpointError(f"{folder / WEIGHTS} holds an encoder alone, no network")
        remember(network, info)
        return cls(network.eval())


def load(name: str | os.PathLike[str], **options: Any) -> FASSDNet:
    """What `FASSDNet.from_pretrained` gives."""
    folder = Path(name)
    if folder.is_file():
        raise ValueError(f"{folder} is a file: a file of weights is read by fassd.load")
    if not folder.is_dir():
        folder = _fetched(os.fspath(name), **options)
    described(folder)  # before the mixin reads it, whose errors name no file
    network: FASSDNet = HubNetwork.from_pretrained(folder).network
    return network


def _fetched(name: str, **options: Any) -> Path:
    """The folder in the hub's cache that holds a repository's files."""
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], **options))
    except HFValidationError:
        raise ValueError(
            f"{name!r} is neither a folder here nor the name of a repository, OWNER/NAME"
        ) from None
    except (HfHubHTTPError, OSError) as error:  # no such repository, no network, not in the cache
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(
            f"could not get {name} from the Hugging Face hub, and there is no such folder: "
            f"{reason:.300}"
        ) from error


# --- config.json -------------------------------------------------------------------------------


def config_of(network: FASSDNet) -> dict[str, Any]:
    """What config.json says of a network.

    Raises:
        ValueError: it was not made by name, or is not what it was made as.
    """
    info = info_of(network)
    if info is None:
        raise ValueError(
            "the network does not say which of the family it is: build it with "
            "fassd.create_model, or read it with fassd.load"
        )
    pictures = preprocessing_of(network)
    variant = get_variant(info.model)
    with torch.device("meta"):
        built = variant.build(network.num_classes, info.alpha)
    if problem := _difference(network, built):
        raise ValueError(f"the network is not {info.model} as it was built: {problem}")
    return {
        "library_name": "fassd",
        **info.to_json(),
        "num_classes": network.num_classes,
        "encoder": variant.encoder,
        "in_channels": network.in_channels,
        "preprocessing": asdict(pictures),
        "temperature": info.temperature,
    }


def _difference(network: nn.Module, built: nn.Module) -> str:
    """How a network's tensors differ from those of another; empty if they do not."""
    own, wanted = network.state_dict(), built.state_dict()
    for key in [*wanted, *own]:
        shapes = [tuple(each[key].shape) if key in each else None for each in (own, wanted)]
        if shapes[0] != shapes[1]:
            return f"{key} is {shapes[0] or 'missing'}, it was {shapes[1] or 'not there'}"
    return ""


def described(folder: Path) -> tuple[NetworkInfo, int]:
    """Which network a folder holds, as its config.json says, else its file of weights.

    Returns:
        It, and the number of its classes, which may have no names.

    Raises:
        CheckpointError: it holds another library's network, or none; the message names the file.
    """
    config, weights = folder / CONFIG, folder / WEIGHTS
    found = _understood(_read(config), config) if config.exists() else None
    if not weights.is_file():
        here = sorted(path.name for path in folder.iterdir())
        listed = ", ".join(map(shown, here[:MOST_LISTED])) or "nothing"
        more = len(here) - MOST_LISTED
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}, in which the weights are; it holds {listed}"
            + (f" and {more} more" if more > 0 else "")
        )
    if found is None and (info := read_info(weights)) is not None:
        found = info, info.num_classes
    if found is None:
        raise CheckpointError(
            f"{folder} has no {CONFIG}, and its {WEIGHTS} does not say which network it holds"
        )
    return found


def _read(path: Path) -> Mapping[str, Any]:
    check_regular(path)
    if (size := path.stat().st_size) > MOST_CONFIG:
        raise CheckpointError(f"{path} has {size:,} bytes, at most {MOST_CONFIG:,} are read")
    try:
        facts = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # also of text that is not UTF-8
        raise CheckpointError(
            f"{path} is no JSON ({type(error).__name__}: {error!s:.80})"
        ) from error
    if not isinstance(facts, Mapping):
        raise CheckpointError(f"{path} holds a {type(facts).__name__}, not a configuration")
    return facts


def _understood(facts: Mapping[str, Any], path: Path) -> tuple[NetworkInfo, int]:
    """What a configuration says."""
    if not {"model", "num_classes", "alpha"} <= facts.keys():
        theirs = [f"{key} {shown(str(facts[key]))}" for key in OF_OTHERS if facts.get(key)]
        raise CheckpointError(
            f"{path} is another library's ({', '.join(theirs) or 'without a model'}): a network "
            "of fassd has model, num_classes and alpha in it"
        )
    try:
        info = NetworkInfo.from_json(facts)
        count = facts["num_classes"]
        if type(count) is not int or not 1 <= count <= 2**16 or info.num_classes not in (0, count):
            raise ValueError(f"num_classes is {count!r:.40}; expected the number of classes")
        bands = facts.get("in_channels")
        if full_name(info.model, facts.get("encoder"), in_channels=bands) != info.model:
            raise ValueError(
                f"encoder {facts.get('encoder')!r:.40} and in_channels {bands!r:.40} "
                f"are not those of {info.model}"
            )
        variant = get_variant(info.model)
        if info.preprocessing is not None:
            takes = variant.switches.get("in_channels", 3)
            if len(info.preprocessing.mean) != takes:
                raise ValueError(
                    f"preprocessing is of {len(info.preprocessing.mean)} channels, "
                    f"the network takes {takes}"
                )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise CheckpointError(f"{path} cannot be understood ({reason})") from error
    return info, count


# --- README.md ---------------------------------------------------------------------------------


def model_card(
    network: FASSDNet,
    name: str = "OWNER/NAME",
    *,
    license: str | None = None,
    data: Sequence[str] = (),
    scores: Sequence[Score] = (),
    training: str = "",
) -> str:
    """The text of a network's model card: its metadata, how to use it, what it takes and gives.

    Args:
        network: a network of the family, made by name.
        name: name of the repository, for the example in it.
        license: licence of the weights, by the hub's name for it; the card says none if not given.
        data: names of the data sets that it was trained on.
        scores: for the card's metadata.
        training: Markdown that follows: how it was trained, what it scores, its limits.

    Raises:
        ValueError: as `config_of`.
    """
    config = config_of(network)
    pictures = config["preprocessing"]
    facts = [
        ("network", f"`{config['model']}`"),
        ("encoder", "HarDNet" if config["encoder"] is None else f"{config['encoder']} of timm"),
        ("DAPF's reduction alpha", config["alpha"]),
        ("parameters", f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} million"),
        ("input", f"{config['in_channels']} channels, {pictures['channels']}"),
        ("normalisation", "(x - 255 mean) / (255 std)"),
        ("mean", _numbers(pictures["mean"])),
        ("std", _numbers(pictures["std"])),
        ("temperature", f"{config['temperature']:.4g}"),
    ]
    info = HubNetwork._hub_mixin_info.model_card_data
    card = ModelCardData(
        **info.to_dict(),
        license=license,
        model_name=name if scores else None,
        eval_results=[
            EvalResult("image-segmentation", slug(data), data, metric, value, metric_name=metric)
            for data, metric, value in scores
        ]
        or None,
    )
    names = [
        (index, cell(entry["name"]), "" if entry["color"] is None else _numbers(entry["color"]))
        for index, entry in enumerate(config["classes"])
    ]
    variant = get_variant(config["model"])
    return str(
        ModelCard.from_template(
            card,
            template_str=TEMPLATE,
            title=" on ".join(filter(None, (variant.title, ", ".join(data)))),
            description=variant.description,
            classes=config["num_classes"],
            name=name,
            facts=facts,
            names=names,
            training=f"\n{training}" if training else "",
        )
    )


def cell(text: str) -> str:
    """A text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def slug(text: str) -> str:
    """A name as the hub spells those of data sets."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split()) or "data"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
