"""Scores of a network: on data sets, and in comparison with another way of running it."""
