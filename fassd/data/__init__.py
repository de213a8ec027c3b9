"""Pictures and labels: preprocessing and generated street scenes."""

from fassd.data.synthetic import render_street
from fassd.data.transforms import MEAN, STD, normalize

__all__ = ["MEAN", "STD", "normalize", "render_street"]
