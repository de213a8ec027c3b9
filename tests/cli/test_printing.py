"""What the commands print of names that come from elsewhere, and on what."""

import os
import re

import numpy as np
import pytest
from clips import write_clip
from data.trees import CARD, write_card, write_tree
from PIL import Image
from rich.text import Text
from typer.testing import CliRunner

from fassd.cli import app
from fassd.cli.terminal import console, escape, escape_lines, progress, say, visible
from fassd.data.cardfile import load_card

FAST = ("--model", "fassd_net_l2", "--backend", "reference", "--device", "cpu")
RAW = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
NAMES = {
    "[red]a[/red]": "[red]a[/red]",
    "[/]": "[/]",
    "\x1b[31mb\x1b[2J": r"\x1b[31mb\x1b[2J",
    "c\x9b31m\x07\x08\r": r"c\x9b31m\x07\x08\r",
    "d\u202egnp\u2066": r"d\u202egnp\u2066",
    "e\nfailed: f": r"e\nfailed: f",
    ":fire:\\[b]": ":fire:\\[b]",
    "\udcff\udc80": r"\udcff\udc80",
    "\u0645\u06cc\u200c\u0631 \u65e5\u672c": "\u0645\u06cc\u200c\u0631 \u65e5\u672c",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("terminal", ["0", "1"])
def test_a_name_is_printed_as_it_is_and_steers_nothing(name, terminal, capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    say(f"[red]failed:[/] {escape(name)}")
    assert capsys.readouterr().err == f"failed: {NAMES[name]}\n"
    for printed in (Text(name), escape(name)):  # whoever forgets `escape` steers nothing either
        console().print(printed, soft_wrap=True)
    assert not RAW.search(capsys.readouterr().out.replace("\n", ""))
    with progress() as bar:
        bar.disable = False
        bar.update(bar.add_task(name, total=1), completed=1, refresh=True)
    for line in re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", capsys.readouterr().err).split("\n"):
        assert not RAW.search(line)


def test_further_lines_of_an_error_are_set_in():
    assert escape_lines("a\nfailed: b\x1b") == "a\n  failed: b\\x1b"
    assert visible("a\tb\n", but="\n") == "a\\tb\n"


@pytest.mark.parametrize("charset", ["utf-8", "cp1252"])
def test_predict_prints_every_name_on_every_code_page(tmp_path, monkeypatch, charset):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    for name in NAMES:
        os.makedirs(os.path.dirname(f"in/{name}"), exist_ok=True)
        with open(f"in/{name}.png", "wb") as file:
            Image.new("RGB", (64, 64)).save(file, "PNG")
    with open("in/[/\x1b[31m\u202ebroken.png", "wb"):
        pass
    write_clip("in/[red]\x1b.mp4", 2)
    result = CliRunner(charset=charset).invoke(app, ["predict", "in", "-o", "out", *FAST])
    assert result.exit_code == 1, result.stderr
    assert r"failed: in/[/\x1b[31m\u202ebroken.png: is empty" in result.stderr
    assert r"in/[red]\x1b.mp4" in result.stdout
    assert not RAW.search((result.stdout + result.stderr).replace("\n", ""))
    for shown in NAMES.values():
        assert (
            f"in/{shown}.png".encode(charset, "backslashreplace").decode(charset) in result.stdout
        )


CLASSES = r"""classes: ["[red]a", "[/]\e[31mb\u202e", "c\x9b31m\a:fire:"]"""


@pytest.mark.parametrize("charset", ["utf-8", "ascii"])
def test_names_of_a_card_are_printed_as_they_are(tmp_path, monkeypatch, charset):
    monkeypatch.setenv("COLUMNS", "160")
    card = load_card(write_card(tmp_path, {
        CARD[CARD.index("classes:") : CARD.index("splits:")]: f"{CLASSES}\n",
        "name: toy": r'name: "[/]\e[31m"',
        "val: val": r'"[b]\e[31mv": val',
        "values: ids\n  ignore: [0]": "values: index",
    }))  # fmt: skip
    write_tree(card, tmp_path)
    for pair in card.pairs("[b]\x1b[31mv"):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(pair.image)
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(pair.mask)
    names = ["[red]a", r"[/]\x1b[31mb\u202e", r"c\x9b31m\x07:fire:"]
    run = CliRunner(charset=charset).invoke
    checked = run(app, ["data", "check", str(tmp_path)])
    assert "[/]\\x1b[31m in " in checked.stderr
    scored = run(
        app, ["val", "--data", str(tmp_path), "--split", "[b]\x1b[31mv", "-w", "random", *FAST]
    )
    for result in (checked, scored):
        assert result.exit_code == 0, result.stderr
        assert all(name in result.stdout for name in names)
        assert not RAW.search((result.stdout + result.stderr).replace("\n", ""))


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--\x1b[31mx", "-o", "out"],
        ["predict", "no\x1b[31m[/]\u202e.png", "-o", "out"],
        ["no\x1b[31m"],
        ["data", "check", "\x1b[31m[/]"],
        ["predict", "a.png", "-o", "\x1b[31m/[/]/x.pdf"],
        ["demo", "-o", "\x1b[31m.png"],
        ["info", "\x1b[31m[/]"],
    ],
)
@pytest.mark.parametrize("charset", ["utf-8", "ascii"])
def test_errors_steer_nothing(tmp_path, monkeypatch, arguments, charset):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("a.png")
    result = CliRunner(charset=charset).invoke(app, arguments)
    assert result.exit_code == 2
    assert r"\x1b[31m" in result.stderr and not RAW.search(result.stderr.replace("\n", ""))


def test_signs_that_a_code_page_lacks_are_written_otherwise(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    run = CliRunner(charset="ascii").invoke
    result = run(app, ["bench", "run", *FAST, "--size", "64x64", "--repeats", "2", "--no-memory"])
    assert result.exit_code == 0, result.stderr
    assert re.search(r"\d \+-\d", result.stdout)
    for arguments in (["--help"], ["predict", "--help"], ["info"], ["data", "list"]):
        assert run(app, arguments).exit_code == 0
