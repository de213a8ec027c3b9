import numpy as np
import pytest
from torch import nn

from fassd.data.card import CardError
from fassd.data.ids import read_ids
from fassd.io.palette import CITYSCAPES
from fassd.models import NetworkInfo
from fassd.models.info import remember

# trainId to id, of labels.py of the cityscapesScripts.
SERVER = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]

CARD = """
name: cells
classes:
  - {name: wall, ids: [300, 4]}
  - {name: cell, ids: 5}
splits: {train: train}
images: "{split}/{name}.png"
masks: {files: "{split}/{name}_mask.png", values: VALUES}
"""


def network(*names):
    head = nn.Conv2d(3, len(names), 1)
    remember(head, NetworkInfo("fassd_net", 2, names))
    return head


def written(path, values="ids", extra=""):
    path.write_text(CARD.replace("VALUES", values + extra))
    return path


def test_those_of_the_cityscapes_server():
    ids = read_ids("cityscapes")
    assert list(ids.ids) == SERVER and ids.ignored == 0
    table = ids.of(nn.Identity())  # of 19 classes, as one that tells nothing
    assert table.dtype == np.uint8 and table.shape == (256,)
    assert table[:19].tolist() == SERVER and set(table[19:]) == {0}
    names = [info.name for info in CITYSCAPES]
    turned = ids.of(network(*reversed(names)))
    assert turned[:19].tolist() == SERVER[::-1]


def test_of_a_file_and_a_folder_without_pictures(tmp_path):
    path = written(tmp_path / "card.yaml", extra=", ignore: [9, 7]")
    for data in (path, str(tmp_path)):
        ids = read_ids(data)
        assert (ids.names, ids.ids, ids.ignored) == (("wall", "cell"), (300, 5), 9)
    table = ids.of(network("cell", "wall"))
    assert table.dtype == np.uint16 and table[:3].tolist() == [5, 300, 9]
    assert read_ids(written(path, "index, first: 3")).ids == (3, 4)
    assert read_ids(written(path)).ignored == 255


def test_what_has_no_ids_and_what_does_not_fit(tmp_path):
    with pytest.raises(CardError, match=r"cells.* its masks have no ids \(values: colors\)"):
        read_ids(written(tmp_path / "card.yaml", "colors"))
    with pytest.raises(CardError, match="there is no card 'nothing'"):
        read_ids("nothing")
    ids = read_ids(written(tmp_path / "card.yaml"))
    with pytest.raises(ValueError, match=r"no ids of card 'cells' .*only the network has 'door'"):
        ids.of(network("wall", "door"))
    with pytest.raises(ValueError, match="the network has 19 classes, the card 2"):
        ids.of(nn.Identity())
