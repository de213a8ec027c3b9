"""`fassd synth`: a dataset of generated streets."""

import numpy as np

from fassd.io.images import read_image
from fassd.synth import render_street
from fassd.synth.write import frame_paths


def test_writes_the_pictures_that_were_asked_for(tmp_path, succeed):
    arguments = ("--split", "val", "--count", 2, "--seed", 5, "--size", "32x64", "--workers", 1)
    result = succeed("synth", tmp_path / "streets", *arguments)
    assert result.stdout == ""
    assert "2 pictures of 32x64 and their labels" in result.stderr
    for index in range(2):
        image, _ = frame_paths(tmp_path / "streets", "val", index)
        expected = render_street(32, 64, 5, split="val", index=index)[0]
        np.testing.assert_array_equal(read_image(image), expected)
    assert len(list(tmp_path.rglob("*.png"))) == 4


def test_refusals(tmp_path, refusal, succeed):
    small = ("synth", tmp_path, "--count", 1, "--size", "8x64")
    assert "at least 16, got 8 and 64" in refusal(*small)
    succeed("synth", tmp_path, "--count", 2, "--size", "16x16", "--workers", 1)
    fewer = ("synth", tmp_path, "--count", 1, "--size", "16x16", "--workers", 1)
    assert "would stay among the new pictures" in refusal(*fewer)


def test_wrong_options_are_named(tmp_path, refusal):
    assert "dev" in refusal("synth", tmp_path, "--split", "dev")
    assert "512" in refusal("synth", tmp_path, "--size", "512")
    assert not list(tmp_path.iterdir())
