"""`fassd report`: results on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fassd.cli import options
from fassd.cli.common import app
from fassd.cli.options import FULL_SIZE, Size, size_option
from fassd.cli.terminal import escape, progress, say
from fassd.io.files import check_folder


@app.command()
def report(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write to.")
    ],
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results",
            "-r",
            metavar="FOLDER",
            show_default="OUTPUT/results, then those of the checkout",
            help="Folder of results files; may be repeated, most important first.",
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="First measure what the folder does not hold yet.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="With --measure: every other runtime, and memory.")
    ] = False,
    size: Annotated[
        Size,
        size_option(
            help="With --measure: size of the largest pictures. The networks' tables need "
            "1024x2048."
        ),
    ] = FULL_SIZE,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="With --measure: rounds.")] = 7,
    threads: options.Threads = None,
) -> None:
    """Put measurements on one page: report.html, and report.md with pictures.

    The page holds the authors' ablation with what this machine makes of it, speed against
    accuracy, the time per layer against its floor, what factorised convolutions buy, dead taps,
    scaling, memory. It asks for no other file and no network. Every cell names the place in a
    results file, or the publication, that it comes from.

    --measure first measures this machine into [cyan]DIR/results[/], which takes minutes (with
    --full, all peers, many); what is there already is kept, so that a run that was stopped goes
    on. Files that [cyan]fassd bench peers --json[/], [cyan]fassd bench layers
    --json[/], [cyan]pytest benchmarks/ --benchmark-json[/] or [cyan]make gpu-report[/] wrote are
    read from there, too.

    [bold]Examples[/]

    [cyan]fassd report -o report[/]

    [cyan]fassd report -o report --measure[/]

    [cyan]fassd report -o report --results mine/ --results benchmarks/results[/]
    """
    from fassd.bench.report.build import build_page, committed_results, write_report
    from fassd.bench.report.charts import check_matplotlib
    from fassd.bench.report.results import collect

    if full and not measure:
        raise ValueError("--full works only with --measure")
    check_matplotlib()
    check_folder(output)
    own = output / "results"
    if measure:
        from fassd.bench.report.measure import measure as measure_parts
        from fassd.bench.report.measure import parts

        with progress() as bar:
            task = bar.add_task("", total=None)
            wanted = parts(full, threads, size, repeats)
            for path in measure_parts(own, wanted, lambda text: bar.update(task, description=text)):
                say(f"figures: {escape(str(path))}")
    committed = committed_results()
    folders = results or [own, *([committed] if committed else [])]
    absent = [str(folder) for folder in results or () if not folder.is_dir()]
    if absent:
        raise ValueError(f"--results: no such folder: {', '.join(absent)}")
    notes: list[str] = []
    page = build_page(collect(folders, notes), notes)
    for path in write_report(output, page):
        say(f"report: {escape(str(path))}")
