"""The files of predictions."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from benchmarks import predicted
from fassd.models import list_models
from fassd_kernels.triton import availability

pytestmark = pytest.mark.skipif(
    bool(availability.triton_missing()), reason=availability.triton_missing()
)


def test_files(tmp_path, monkeypatch, capsys):
    asked, predict = [], functools.cache(predicted.predict)

    def one_network(name: str, *rest: Any) -> Any:  # all nine take a while
        asked.append(name)
        return predict("fassd_net", *rest)

    monkeypatch.setattr(predicted, "predict", one_network)
    predicted.main(["--gpu", "H200", "--output", str(tmp_path / "new")])
    assert asked == [*list_models(), "fassd_net"]
    assert "cuda-h200.md" in capsys.readouterr().out
    record = json.loads((tmp_path / "new" / "cuda-h200.json").read_text())
    first, *_, last = record["predictions"]
    assert (first["network"], first["batch"]) == ("fassd_net", 1)
    assert (last["network"], last["batch"]) == ("fassd_net", 8)
    text = (tmp_path / "new" / "cuda-h200.md").read_text()
    assert "nothing here was measured" in text
    assert f"| {1e3 * first['predicted_s']:.3f} | {1 / first['predicted_s']:.0f} |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    # Two tables with their headers: networks, launches.
    assert len(rows) == 2 * 2 + len(record["predictions"]) + len(first["rows"])
    assert 1e-4 < first["predicted_s"] < last["predicted_s"] < 8 * first["predicted_s"]
