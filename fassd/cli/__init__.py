"""The command line `fassd`: one module per group of commands, `common` for what they share."""

from fassd.cli import bench, info, predict
from fassd.cli.common import Size, app, parse_size

__all__ = ["Size", "app", "bench", "info", "main", "parse_size", "predict"]


def main() -> None:
    """Entry point of the console script `fassd`."""
    app(prog_name="fassd")
