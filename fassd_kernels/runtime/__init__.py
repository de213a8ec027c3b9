"""Running a network repeatedly: as CUDA graphs, and on streams of frames."""
