"""Measuring: how long a network takes and why, against every other way to run it."""
