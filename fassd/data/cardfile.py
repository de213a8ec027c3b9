"""Reading a card's file.

A card names the classes, the location of pictures and masks, and the meaning of a mask's pixels:

    name: polyps                            # required: name, classes, splits, images, masks
    description: Endoscopy, two classes.    # free text; so are `source` and `licence`
    root: data                              # from the card's folder, which is the default
    classes:                                # position = label; 2 to 255 of them
      - {name: background, color: [90, 90, 90], ids: 0}
      - {name: polyp, color: [220, 60, 60], ids: [1, 7]}
    splits:
      train: train                          # what {split} stands for below
      val: {folder: validation, pictures: 120}
      test: {list: test.txt}                # one {name} a line; or `names: [a, b]`
    images: "{split}/images/{name}.jpg"
    range: [0, 4095]                        # of values in pictures of more than 8 bits; or auto
    bands: {count: 5, mean: [0.3, 0.3, 0.2, 0.5, 0.1], std: [0.2, 0.2, 0.1, 0.3, 0.1]}
    masks:
      files: "{split}/masks/{name}_mask.png"
      values: ids
      ignore: [255]

* `{split}` is the split's folder. Any other `{hole}` stands for a part of a file's or folder's
  name, the same one in the picture's path and in the mask's; `{name:path}`, only in the last part
  of `images`, also matches files in folders below. Only files with a picture's ending count.
* `covers` of a class is the class, or the list of classes, of a finer list that it consists of:
  `{name: car, covers: [car, truck, bus, train]}` lets a network of Cityscapes' 19 classes learn
  from and be scored on a card with few classes. A class of such a card without the key is the class
  of the same name.
* A class may be only its name. `color` is the colour in drawings: either every class has one, or
  `fassd.io.palette.palette` assigns them.
* Only `root` may lead out of the card's folder: check it in a card from somewhere else, or give
  another (`--root`). All other paths, and the folders of splits, lie below it.
* A split is a folder or {folder, images, list, column, names, pictures}: `images` replaces the
  card's; `list` is a text file with a picture's name or path per line, or in its column number
  `column`, where folders and ending do not matter (UTF-8, or as Windows writes it: UTF-16, a byte
  order mark, `\\` between folders); `pictures` is the number of pictures of the full set.
* `range` gives the values that become 0 and 255 in pictures of more than 8 bits: two numbers, or
  `auto`, each picture's lowest and highest. Without it, it is everything that a file can hold.
* `bands` is for pictures that are not of three colours: the number of their bands, alone or with
  `mean` and `std` of each, as fractions of the largest value (by default 0.5 and 0.25). They are
  read without conversion (`fassd.io.bands`), and need a network that takes them
  (`fassd_net+bands5`).
* `masks` may be several such blocks: the first mask that exists is taken for each picture. `values`
  gives the meaning of a pixel: `ids`, one of a class's `ids`; `index`, the class's position counted
  from `first` (0); `colors`, a class's `color` or one of its `colors`; `threshold`, grey, where
  levels above `above` (127) are the second of two classes. `ignore` lists ids or colours without a
  class, and `unlisted: ignore` ignores all others; otherwise any id or colour that the card does
  not list is an error. Masks of ids may also be NumPy arrays (`.npy`), and may contain -1 if
  `ignore` lists it.
* Shapes instead of masks: `values: labelme`, `coco` or `yolo`, where `files` are those of LabelMe
  (JSON), COCO (one JSON file for many pictures) or YOLO (text). Later shapes are drawn over earlier
  ones. `background` is required: the class of pixels outside all shapes, or `ignore`. A shape's
  class is determined by its name, which is the class's own or one of its `labels` (`{name: tree,
  labels: [Tree, bush]}`); with YOLO by its number, which is one of a class's `ids`. `ignore` lists
  names (numbers) without a class; `unlisted` is as above. With `holes: true`, polygons of a COCO
  annotation that lie inside of another one are holes, as some programs write them; COCO itself does
  not define holes.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from fassd.data.card import CARDS, Card, CardError, Masks, Split
from fassd.data.cardmodel import CardContent, CardSplit, check_split, covered, label_classes
from fassd.io.levels import as_range
from fassd.io.untrusted import problem, read_text, read_yaml, shortened, shown

CARD_FILE = "card.yaml"


def shipped_cards() -> list[str]:
    """Names of the cards that are part of the package."""
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


def load_card(data: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Card:
    """Read a card.

    Args:
        data: path of a card's YAML file; the name of a shipped card (`shipped_cards`), which needs
            `root`; or a folder, whose `card.yaml` is used if it has one, or which is Cityscapes if
            it contains `leftImg8bit` and `gtFine`.
        root: folder that the card's paths start from, in place of the card's own.

    Raises:
        CardError: there is no such card, it contains an error, or `root` is not a folder. Files
            inside `root` are only looked for by `Card.pairs`.
    """
    text = os.fspath(data)
    path = Path(text)
    if text in shipped_cards() and (root is not None or not path.exists()):
        if root is None:
            raise CardError(
                f"card {text!r} needs the folder of the dataset: give it as root (--root)"
            )
        path = CARDS / f"{text}.yaml"
    elif path.is_dir():
        path, root = _card_of_folder(path, root)
    elif not path.is_file():
        raise CardError(
            f"there is no card {text!r}; give a card's YAML file, a folder with {CARD_FILE} or "
            f"Cityscapes in it, or one of {', '.join(shipped_cards())}"
        )
    return parse_card(path, None if root is None else Path(root))


def _card_of_folder(
    folder: Path, root: str | os.PathLike[str] | None
) -> tuple[Path, str | os.PathLike[str] | None]:
    if (folder / CARD_FILE).is_file():
        return folder / CARD_FILE, root
    if (folder / "leftImg8bit").is_dir() and (folder / "gtFine").is_dir():
        return CARDS / "cityscapes.yaml", folder if root is None else root
    raise CardError(
        f"the folder {folder} holds neither {CARD_FILE} nor leftImg8bit and gtFine (Cityscapes); "
        f"if it is one of {', '.join(shipped_cards())}, give that name and the folder as root"
    )


def parse_card(path: Path, root: Path | None) -> Card:
    """Read a card file.

    Raises:
        CardError: as in `load_card`.
    """
    try:
        value = read_yaml(read_text(path))
    except ValueError as error:
        raise CardError(f"{path}: is not a YAML card ({error})") from error
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        content = CardContent.model_validate(value)
        root = path.parent / content.root if root is None else root
        if not os.path.isdir(root):  # also False for a name that is too long
            raise CardError(f"card {shown(content.name)}: there is no folder {root}")
        splits = {
            name: _split(name, split, content.images, root)
            for name, split in content.splits.items()
        }
        for name, split in splits.items():
            check_split(name, split, content.masks)
        return Card(
            name=content.name,
            root=root,
            classes=label_classes(content.classes),
            covers=covered(content.classes),
            splits=splits,
            masks=tuple(Masks(each.files, each.code(content.classes)) for each in content.masks),
            path=path,
            range=as_range(content.range),
            preprocessing=None if content.bands is None else content.bands.preprocessing(),
            description=content.description,
            source=content.source,
            licence=content.licence,
        )
    except CardError:
        raise
    except ValueError as error:
        reason = problem(error) if isinstance(error, ValidationError) else str(error)
        raise CardError(f"{path}: {shortened(reason, 600)}") from error


def _split(name: str, given: CardSplit, images: str, root: Path) -> Split:
    """A split, whose folder lies below the root: links in it may lead outside, the card may not.

    Raises:
        ValueError: it does not, or keys contradict each other.
    """
    where, folder, top = (
        f"splits.{shortened(name, 40)}",
        given.folder or name,
        os.path.abspath(root),
    )
    if os.path.commonpath([top, os.path.abspath(os.path.join(top, folder))]) != top:
        raise ValueError(
            f"{where}: must be a folder below the root (the key 'root', or --root, says where that "
            f"is), got {shown(folder)}"
        )
    if given.list is not None and given.names is not None:
        raise ValueError(f"{where}: has both 'list' and 'names'; one of them is enough")
    if given.column is not None and given.list is None:
        raise ValueError(f"{where}: 'column' counts in a list, but there is no 'list'")
    return Split(
        folder, given.images or images, given.names, given.list, given.column, given.pictures
    )
