"""Measuring what is fastest on a GPU; each result is compared with the reference first."""
