"""Running a network again and again: as CUDA graphs, and on frames that keep coming."""
