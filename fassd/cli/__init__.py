"""The command line `fassd`: one module per group of commands, `common` for what they share."""

from fassd.cli import (
    bench,
    data,
    demo,
    evaluate,
    export,
    info,
    predict,
    report,
    serve,
    synth,
    train,
)
from fassd.cli.common import Size, app, parse_size

__all__ = [
    "Size",
    "app",
    "bench",
    "data",
    "demo",
    "evaluate",
    "export",
    "info",
    "main",
    "parse_size",
    "predict",
    "report",
    "serve",
    "synth",
    "train",
]


def main() -> None:
    """Entry point of the console script `fassd`."""
    app(prog_name="fassd")
