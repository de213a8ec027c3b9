"""The command line `fassd`: one module per group of commands, and `common` for shared parts."""

from fassd.cli import (  # noqa: F401  (each adds its commands)
    bench,
    data,
    demo,
    evaluate,
    export,
    info,
    predict,
    publish,
    report,
    serve,
    synth,
    train,
)
from fassd.cli.common import app
from fassd.cli.options import Size, parse_size

__all__ = ["Size", "app", "main", "parse_size"]


def main() -> None:
    """Entry point of the console script `fassd`."""
    app(prog_name="fassd")
