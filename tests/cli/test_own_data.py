"""What docs/own-data.md tells to do, done: grey pictures of 12 bits in files of 16."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_docs import shell_lines

from fassd.data import SegmentationDataset, load_card
from fassd.training.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text()
TINY = (
    "--steps 2 --batch 2 --threads 1 --device cpu -s warmup=1 -s crop=[64,64] -m fassd_net_l2 "
    "-s val_every=0"
)


def write_cells(folder, names, rng):
    """Two grey levels of 12 bits, and where they are."""
    for name in names:
        labels = np.kron(rng.integers(0, 2, (6, 8)), np.ones((16, 16), int))
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "masks").mkdir(exist_ok=True)
        grey = 500 + 3000 * labels + rng.integers(0, 500, labels.shape)
        Image.fromarray(grey.astype(np.uint16)).save(folder / f"images/{name}.tif")
        Image.fromarray((255 * labels).astype(np.uint8)).save(folder / f"masks/{name}.png")


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """The folder of the page, with the card and the settings that stand there."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_cells(Path("cells/train"), ["a01", "a02", "a03"], rng)
    write_cells(Path("cells/test"), ["b01", "b02"], rng)
    Path("cells/test/images/b01.tif").rename(Path("cells").joinpath("c01.tif"))
    write_cells(Path("cells/test"), ["b01"], rng)
    Path("cells/new").mkdir()
    Path("cells/c01.tif").rename("cells/new/c01.tif")
    card, _, recipe = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
    Path("cells/card.yaml").write_text(card)
    Path("cells.yaml").write_text(recipe)
    return tmp_path


def test_the_pages_commands_lead_from_pictures_and_masks_to_labels(cells, succeed):
    done = []
    for command, *words in shell_lines(PAGE):
        if command == "fassd" and any("cells" in word for word in words):
            more = shlex.split(TINY) if words[0] == "train" else []
            done.append(words[0])
            result = succeed(*words, *more)
            if words[0] == "data":
                assert "0 errors, 0 warnings" in result.stderr
            if words[0] == "val":
                assert re.search(r"Dice %.*\nwall .*\ncell ", result.stdout)
    assert done == ["data", "train", "val", "predict"]
    with Image.open("labelled/c01_trainids.png") as labels:
        assert labels.size == (128, 96) and set(np.unique(np.asarray(labels))) <= {0, 1}


def test_grey_pictures_are_read_over_the_cards_range(cells):
    sample = SegmentationDataset(load_card("cells"), "train")[0]
    with Image.open(sample.path) as image:
        stored = np.asarray(image).astype(int)
    assert (sample.image == (stored // 16)[..., None]).all()  # 4096 values in 256 levels
    assert sample.image.max() > 200


def test_what_the_page_says_of_the_preset_is_so():
    settings = load_recipe("membrane").to_dict()
    said = dict(re.findall(r"`(\w+): ([^`]+)`", PAGE.split("| few pictures")[1].split("| rare")[0]))
    assert {"weights", "crop", "flip", "rotate", "scale", "loss", "ema"} <= set(said)
    for name, value in said.items():
        assert str(settings[name]).lower() == value.lower(), name
