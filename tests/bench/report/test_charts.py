"""Names in plots can be read, and what draws them is asked for."""

from __future__ import annotations

import sys
from itertools import combinations

import pytest

pytest.importorskip("matplotlib")

from fassd.bench.report.charts import BLACK, WHITE, Chart, Point, check_matplotlib, scatter_figure


def test_names_meet_neither_each_other_nor_a_point() -> None:
    places = [(40, 77.0), (41, 77.1), (42, 76.9), (55, 78.0), (56, 75.0)]
    points = [Point(f"Network {n}", x, y, "grey") for n, (x, y) in enumerate(places)]
    figure = scatter_figure([Chart("", "", "", points=points)], BLACK, WHITE)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [point.name for point in points]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert not any(box.contains(*axes.transData.transform(p)) for box in boxes for p in places)
    assert all(
        axes.bbox.padded(1).contains(*corner) for box in boxes for corner in (box.p0, box.p1)
    )


def test_a_missing_adjust_text_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adjustText", None)
    with pytest.raises(ImportError, match=r"plots need adjustText: pip install 'fassd-net\[bench"):
        check_matplotlib()
