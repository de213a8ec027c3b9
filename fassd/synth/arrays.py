"""Names for arrays. OpenCV's type hints give no dtypes, so these cannot either."""

from typing import Any

import numpy.typing as npt

Bytes = npt.NDArray[Any]
"""uint8: a picture (H, W, 3), a mask or a grey texture (H, W)."""

Floats = npt.NDArray[Any]
"""float32 or float64."""
