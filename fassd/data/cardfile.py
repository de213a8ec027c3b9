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
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from fassd.data.card import CARDS, Card, CardError, Masks, Split
from fassd.data.maskblock import CardClass, parse_ids, parse_masks, parse_texts
from fassd.data.node import Node
from fassd.data.patterns import HOLE
from fassd.io.palette import IGNORE, LabelClass, palette
from fassd.io.untrusted import MOST_YAML, read_text, read_yaml, shown
from fassd.models.preprocess import MOST_BANDS, Preprocessing

CARD_FILE = "card.yaml"
MOST_SPLITS = 1000
MOST_MASKS = 16


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
    """Read a card file."""
    try:
        value = read_yaml(read_text(path))
    except ValueError as error:
        raise CardError(f"{path}: is not a YAML card ({error})") from error
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror})") from error
    fields = Node(value, path).fields(
        ("name", "classes", "splits", "images", "masks"),
        ("description", "source", "licence", "root", "range", "bands"),
    )
    words = {
        key: fields[key].text(MOST_YAML)
        for key in ("description", "source", "licence")
        if key in fields
    }
    if root is None:
        root = path.parent / fields["root"].text() if "root" in fields else path.parent
    if not os.path.isdir(root):  # also False for a name that is too long
        raise CardError(f"card {shown(fields['name'].text())}: there is no folder {root}")
    classes = _parse_classes(fields["classes"])
    images = fields["images"].template()
    splits = {
        name: _parse_split(node, images, root)
        for name, node in fields["splits"].entries("a mapping of names to splits").items()
    }
    if not 1 <= len(splits) <= MOST_SPLITS:
        fields["splits"].fail(f"must have at least one split, at most {MOST_SPLITS:,}")
    several = isinstance(fields["masks"].value, list)
    blocks = fields["masks"].items("mask blocks") if several else [fields["masks"]]
    if len(blocks) > MOST_MASKS:
        fields["masks"].fail(f"must be at most {MOST_MASKS} blocks, got {len(blocks):,}")
    masks = tuple(parse_masks(block, classes) for block in blocks)
    _check_holes(fields, splits, masks)
    return Card(
        name=fields["name"].text(),
        root=root,
        classes=tuple(info.shown for info in classes),
        covers=tuple(info.covers for info in classes if info.covers),
        splits=splits,
        masks=masks,
        path=path,
        range=fields["range"].range() if "range" in fields else None,
        preprocessing=_parse_bands(fields["bands"]) if "bands" in fields else None,
        **words,
    )


def _parse_bands(node: Node) -> Preprocessing:
    if not isinstance(node.value, dict):
        return Preprocessing.of_bands(node.integer(1, MOST_BANDS))
    fields = node.fields(["count"], ["mean", "std"])
    count = fields["count"].integer(1, MOST_BANDS)
    own = asdict(Preprocessing.of_bands(count))
    for key in ("mean", "std"):
        if key in fields:
            given = fields[key].value
            if not isinstance(given, list) or len(given) != count:
                fields[key].fail_got(f"a list of {count} numbers, one for each band")
            own[key] = given
    try:
        return Preprocessing.checked(**own)
    except (ValueError, TypeError, OverflowError) as error:
        node.fail(str(error))


def _parse_classes(node: Node) -> list[CardClass]:
    nodes = node.items("a list of classes")
    if not 2 <= len(nodes) <= IGNORE:
        why = "with one there is nothing to tell apart" if len(nodes) == 1 else "labels have 8 bits"
        node.fail(f"must be 2 to {IGNORE} classes, got {len(nodes)} ({why})")
    entries = []
    for item in nodes:
        if isinstance(item.value, str):
            entries.append({"name": item})
        else:
            keys = ["color", "ids", "colors", "labels", "covers"]
            entries.append(item.fields(["name"], keys))
    names = [entry["name"].text() for entry in entries]
    for index, name in enumerate(names):
        if name in names[:index]:
            nodes[index].fail(f"the class {shown(name)} stands twice, at {names.index(name)}, too")
    given = [entry["color"].color() for entry in entries if "color" in entry]
    if given and len(given) < len(entries):
        bare = next(i for i, entry in enumerate(entries) if "color" not in entry)
        nodes[bare].fail("the key 'color' is missing; either all classes have one or none has")
    drawn = given or [(int(r), int(g), int(b)) for r, g, b in palette(len(entries))]
    return [
        CardClass(
            LabelClass(name, color),
            parse_ids(entry.get("ids")),
            _parse_colors(entry, color),
            parse_texts(entry.get("labels", entry["name"])),
            covers,
        )
        for name, color, entry, covers in zip(
            names, drawn, entries, _parse_covers(names, entries), strict=True
        )
    ]


def _parse_covers(names: list[str], entries: list[dict[str, Node]]) -> list[tuple[str, ...]]:
    """The classes of a finer list in each class; empty if no class has the key."""
    if not any("covers" in entry for entry in entries):
        return [()] * len(names)
    covers: list[tuple[str, ...]] = []
    owner: dict[str, str] = {}
    for name, entry in zip(names, entries, strict=True):
        node = entry.get("covers", entry["name"])
        texts = parse_texts(node)
        for covered in texts:
            if covered in owner:
                whose = f"the classes {shown(owner[covered])} and {shown(name)} both cover"
                twice = f"the class {shown(name)} covers twice" if owner[covered] == name else whose
                node.fail(f"{twice} {shown(covered)}")
            owner[covered] = name
        covers.append(tuple(texts))
    return covers


def _parse_colors(
    entry: dict[str, Node], shown: tuple[int, int, int]
) -> list[tuple[int, int, int]]:
    if "colors" in entry:
        return [item.color() for item in entry["colors"].items("a list of colours")]
    return [shown]


def _parse_split(node: Node, images: str, root: Path) -> Split:
    if isinstance(node.value, str):
        return Split(node.folder(root), images)
    name = node.key.rpartition(".")[2]
    fields = node.fields([], ["folder", "images", "list", "column", "names", "pictures"])
    if "list" in fields and "names" in fields:
        node.fail("has both 'list' and 'names'; one of them is enough")
    if "column" in fields and "list" not in fields:
        fields["column"].fail("counts in a list, but there is no 'list'")
    names = fields["names"].items("a list of names") if "names" in fields else None
    return Split(
        folder=(fields["folder"] if "folder" in fields else replace(node, value=name)).folder(root),
        images=fields["images"].template() if "images" in fields else images,
        names=None if names is None else tuple(item.text() for item in names),
        list_file=fields["list"].template() if "list" in fields else None,
        column=fields["column"].integer(1, 1000) if "column" in fields else None,
        pictures=fields["pictures"].integer(1, 10**9) if "pictures" in fields else None,
    )


def _check_holes(
    fields: dict[str, Node], splits: Mapping[str, Split], masks: tuple[Masks, ...]
) -> None:
    """Check that masks only use holes that pictures fill; only the last part may be a path."""
    for name, split in splits.items():
        folders, _, _ = split.images.rpartition("/")
        if ":path" in folders:
            fields["images"].fail("{...:path} may only stand after the last /")
        filled = {hole[1] for hole in HOLE.finditer(split.images)} | {"split"}
        for block in masks:
            free = [h[1] for h in HOLE.finditer(block.files) if h[1] not in filled]
            if free:
                fields["masks"].fail(
                    f"{block.files!r} has the hole {{{free[0]}}}, which the pictures of split "
                    f"{name!r}, {split.images!r}, do not fill"
                )
        if (split.list_file or split.names) and "name" not in filled:
            fields["splits"].fail(
                f"split {name!r} lists names, so its pictures {split.images!r} need a hole {{name}}"
            )
