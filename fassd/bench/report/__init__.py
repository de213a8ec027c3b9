"""The page of `fassd report`: what was measured, with pictures."""
