"""Generated streets, so that the page can show something without the user's own picture."""

from __future__ import annotations

import functools
import io

from PIL import Image

EXAMPLES = 16
"""Number of different scenes; each is drawn once."""

HEIGHT, WIDTH = 512, 1024


@functools.lru_cache(EXAMPLES)
def street(scene: int) -> bytes:
    """A street as JPEG, from the split whose textures no training uses.

    Args:
        scene: number of the scene, from 0 to `EXAMPLES` - 1.
    """
    from fassd.synth import render_street

    picture, _ = render_street(HEIGHT, WIDTH, 1, split="test", index=scene)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
