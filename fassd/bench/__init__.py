"""Measuring: the speed of a network and its causes, compared with every other way of running it."""
