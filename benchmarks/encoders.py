"""The table of encoders that `fassd info --encoders` shows: rows that it lacks, counted and added.

    python -m benchmarks.encoders

It takes half a second for each; delete a row, or the file, to have it made anew.
"""

from __future__ import annotations

from fassd.bench.costs.encoders import TABLE, cost_of, read_table, write_table
from fassd.models.encoder import import_timm


def main() -> None:
    names = import_timm().list_models()
    known = read_table() if TABLE.exists() else {}
    costs = {name: known[name] for name in names if name in known}
    for name in names:
        if name not in costs:
            costs[name] = cost_of(name)
            write_table(costs)  # at once, so that it goes on where it was stopped


if __name__ == "__main__":
    main()
