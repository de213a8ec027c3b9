"""Generated streets with exact labels, to train on and to test with.

A street in perspective, seen from a car: carriageway with lanes, markings, tracks and islands;
kerbs, pavements, verges; houses, walls, fences, hedges, trees; lamps, masts, bollards, traffic
lights, signs; cars, trucks, buses, trams, bicycles and motorcycles with and without riders, and
people. All 19 classes of Cityscapes appear. Bends, side streets, left-hand traffic, sun from any
side with the shadows that it casts, haze, fog, dusk, blur, exposure and noise vary from scene to
scene.

Colour reveals little: road and pavement share colours and textures, as do walls and houses, grass
and leaves, and all vehicles. Some decisions depend on distant parts of the picture:

* The same paving is road or sidewalk depending on which side of the kerb it lies, and the kerb
  runs to the vanishing point.
* A long box with windows is a train if rails lead to it, else a bus; both come from one draw of
  liveries, windows and proportions.
* A windowless wall is a building if storeys stand on it, else a wall.
* A figure with two wheels below it is a rider, else a person.

The splits share no texture. Every pavement, wall, facade, fence, tree crown, cloud and the
sensor's noise come from a bank made from the split's own seed; "val" and "test" also have kinds of
paving and walls that "train" lacks, and the reverse (`textures.FAMILIES`). Colours, shapes and
layouts are drawn from the same ranges in all splits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fassd.synth.scene import Scene
from fassd.synth.textures import SPLITS, bank

__all__ = ["VERSION", "check_scene", "render_street"]

VERSION = 1
"""Version of the generator: it grows when the same arguments give different pictures."""


def render_street(
    height: int = 1024, width: int = 2048, seed: int = 0, *, split: str = "train", index: int = 0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw a street scene and its exact label map.

    It takes about 0.08 s for 512 x 1024 pixels on one core, and a second for the textures of a
    split when a process first needs them.

    Args:
        height, width: size in pixels, each at least 16.
        seed, split, index: numbers and name that select the scene; together they give the same
            scene at every size. `split` is "train", "val" or "test".

    Returns:
        The picture, (height, width, 3) uint8 RGB, and its Cityscapes trainIds, (height, width)
        uint8, 0 .. 18.

    Raises:
        ValueError: a size is below 16, a seed or index is negative, or the split is unknown.
    """
    check_scene(height, width, seed, split)
    if index < 0:
        raise ValueError(f"index must be 0 or more, got {index}")
    sequence = np.random.SeedSequence([0x57EE7, seed, SPLITS[split], index])
    return Scene(np.random.default_rng(sequence), bank(split)).show(height, width)


def check_scene(height: int, width: int, seed: int, split: str) -> None:
    """Check the arguments from which a scene is drawn.

    Raises:
        ValueError: a size is below 16, the seed is negative, or the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if min(height, width) < 16:
        raise ValueError(f"height and width must be at least 16, got {height} and {width}")
