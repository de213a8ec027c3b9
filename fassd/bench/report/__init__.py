"""The page of `fassd report`: measurements, with pictures."""
