"""Generated streets, so that the page has something to show without a picture at hand."""

from __future__ import annotations

import functools
import io

from PIL import Image

EXAMPLES = 16
"""How many different scenes there are; each is drawn once."""

HEIGHT, WIDTH = 512, 1024


@functools.lru_cache(EXAMPLES)
def street(scene: int) -> bytes:
    """A street as JPEG, of the split whose textures no training sees.

    Args:
        scene: from 0 to `EXAMPLES` - 1.
    """
    from fassd.synth import render_street

    picture, _ = render_street(HEIGHT, WIDTH, 1, split="test", index=scene)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
