"""Scores of a network: on data sets, and against another way to run it."""
