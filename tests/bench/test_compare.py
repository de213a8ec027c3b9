"""`fassd bench compare`: change is told from noise by ratios of interleaved rounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fassd.bench import jobs
from fassd.bench.compare import change, judge, ratios_of, read_baseline, run_compare
from fassd.bench.results import Result, Results
from fassd.cli import app

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
COMMITTED = [
    file
    for file in sorted(RESULTS.glob("*/*.json"))
    if "comparisons" in json.loads(file.read_text())
]
TINY = ["--size", "64x128", "--warmup", "0", "--no-memory", "--threads", "1"]


def rounds(
    seed: int, factor: float = 1.0, n: int = 10, noise: float = 0.05
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Ratios of rounds in which both paths drift alike and each has noise of its own."""
    generator = np.random.default_rng(seed)
    drift = 1 + 0.5 * generator.random(n)
    reference = drift * (1 + noise * generator.standard_normal(n))
    path = drift * (1 + noise * generator.standard_normal(n)) * factor / 4
    return reference / path


def test_a_path_that_lost_a_fifth_is_found() -> None:
    verdicts = [judge(change(rounds(i), rounds(i + 1000, 1.25)), 10) for i in range(50)]
    assert verdicts.count("slower") >= 45
    assert "faster" not in verdicts
    assert judge(change(rounds(1, 1.25), rounds(2)), 10) == "faster"


def test_noise_and_drift_raise_no_alarm() -> None:
    pairs = [(rounds(i), rounds(i + 1000)) for i in range(200)]
    verdicts = [judge(change(*pair, resamples=1000), 10) for pair in pairs]
    assert verdicts.count("slower") <= 5


def test_absolute_times_say_nothing() -> None:
    """A machine that became three times as slow, in the middle of a run, changes no ratio."""
    slower = np.linspace(1, 3, 10)

    def ratios(factor: Any) -> Any:
        plain, ours = (
            Result(name=name, seconds=tuple(factor * (1 + rounds(i))), labels_equal_percent=100)
            for i, name in ((2, "plain"), (3, "ours"))
        )
        return ratios_of(plain, ours)

    assert np.allclose(ratios(1), ratios(slower))
    assert judge(change(ratios(1), ratios(slower)), 10) == "no change seen"


def test_few_rounds_judge_nothing() -> None:
    assert judge(change(rounds(1, n=4), rounds(2, 2.0, n=4)), 4) == "too few rounds"


def written(folder: Path, *command: str) -> Path:
    """What a command of `fassd bench` writes for a tiny picture."""
    file = folder / "base.json"
    found = CliRunner().invoke(app, ["bench", *command, *TINY, "--json", str(file)])
    assert found.exit_code == 0, found.output
    return file


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with times that are easy to change."""
    return written(tmp_path_factory.mktemp("run"), "run", "--repeats", "6")


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ("--only", "eager,ours", "--repeats", "5")
    return written(tmp_path_factory.mktemp("peers"), "peers", *options)


def edited(file: Path, folder: Path, **factors: float) -> Path:
    """The file with the seconds of a path, named by its first word, multiplied."""
    record = json.loads(file.read_text())
    for result in record["results"]:
        factor = factors.get(result["name"].split()[0], 1)
        result["seconds"] = [factor * value for value in result["seconds"]]
    new = folder / "edited.json"
    new.write_text(json.dumps(record))
    return new


def run(file: Path, *options: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["bench", "compare", str(file), *options])
    return found.exit_code, " ".join(found.output.split())


def test_results_tell_where_they_come_from(measured: Path) -> None:
    record = json.loads(measured.read_text())
    facts = {"device", "versions", "torch", "threads", "date", "commit", "instruction_set"}
    assert facts <= set(record["environment"])
    assert all({"n", "spread_s", "seconds"} <= set(result) for result in record["results"])


def test_a_slower_path_exits_with_1(measured: Path, tmp_path: Path) -> None:
    """Then ten times as fast as it is."""
    report = tmp_path / "report.json"
    file = edited(measured, tmp_path, fassd_kernels=0.1)
    code, output = run(file, "--json", str(report))
    assert code == 1, output
    assert "slower" in output
    assert json.loads(report.read_text())["ok"] is False


def test_a_faster_path_exits_with_0_whatever_the_absolute_times(
    measured: Path, tmp_path: Path
) -> None:
    """All a hundred times as slow then, ours ten times that."""
    file = edited(measured, tmp_path, PyTorch=100, fassd_kernels=1000)
    code, output = run(file)
    assert code == 0, output
    assert "faster" in output


def test_outputs_that_disagree_now_are_an_alarm(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "ours", lambda context, _: lambda x: -context.module(x))
    code, output = run(measured)
    assert code == 1
    assert "disagrees" in output


def test_the_same_again_raises_no_alarm(measured: Path) -> None:
    code, output = run(measured, "--tolerance", "90")
    assert code == 0, output


def test_another_machine_is_a_warning(measured: Path, tmp_path: Path) -> None:
    record = json.loads(measured.read_text())
    record["environment"]["cpu"] = "Other CPU"
    file = tmp_path / "other.json"
    file.write_text(json.dumps(record))
    _, output = run(file, "--tolerance", "90")
    assert "cpu Other CPU then" in output


def test_a_path_that_cannot_run_now_is_missing(peers: Path, tmp_path: Path) -> None:
    record = json.loads(peers.read_text())
    for comparison in record["comparisons"]:
        comparison["job"]["backend"] = "cuda"  # which this CPU's tensors do not take
    file = tmp_path / "peers.json"
    file.write_text(json.dumps(record))
    code, output = run(file, "--tolerance", "90")
    assert code == 1
    assert "missing" in output


def test_an_option_that_contradicts_the_file_is_refused(measured: Path) -> None:
    code, output = run(measured, "--threads", "2")
    assert code == 2
    assert "--threads: 2 was asked for" in output and "measured with 1" in output


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "it must be an object"),
        ('{"environment": {}}', "it has no job, results"),
        ('{"environment": {}, "comparisons": []}', "comparisons must have at least 1 item"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_baseline(file)
    assert "bad.json" in str(caught.value) and "fassd bench run --json" in str(caught.value)


def test_files_of_others_give_an_error_of_one_line(measured: Path, tmp_path: Path) -> None:
    record = json.loads(measured.read_text())
    texts = ["[" * 100_000, json.dumps(100_000 * "x"), "9" * 10_000]
    for name, value in (
        ("size", [10**9, 10**9]),
        ("size", 10_000 * [1]),
        ("batch", 10**12),
        ("repeats", -1),
        ("threads", 10**60),
        ("model", {"x": 100_000 * "x"}),
        ("x" * 100_000, 1),
    ):
        texts.append(json.dumps({**record, "job": {**record["job"], name: value}}))
    name = record["results"][0]["name"]
    for row in ({"name": 100_000 * "x"}, {"seconds": [1e999]}, {"seconds": 10_001 * [1]}):
        row = {**record["results"][0], **row}
        texts.append(json.dumps({**record, "results": [row]}).replace("Infinity", "1e999"))
    texts.append(json.dumps({**record, "notes": 5}))
    file = tmp_path / "bad.json"
    for text in texts:
        file.write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json: ") as caught:
            read_baseline(file)
        assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value), name


def test_what_is_written_is_read(measured: Path) -> None:
    record = json.loads(measured.read_text())
    assert json.loads(json.dumps(Results.of(record).to_json())) == record


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_results_are_read(file: Path) -> None:
    record = json.loads(file.read_text())
    results = Results.read(file)
    for part, written in zip(results.comparisons, record["comparisons"], strict=True):
        assert part.job.model == written["job"]["model"]
        for result, row in zip(part.results, written["results"], strict=True):
            found = {**result.to_json(), "over": part.speedup(result, part.reference)}
            assert (found["median_s"], found["match"]) == (row["median_s"], row["match"])
            assert found["over"] == row["speedup_over_eager"]


def test_an_unknown_path_is_named(measured: Path, tmp_path: Path) -> None:
    record = json.loads(measured.read_text())
    record["results"][1]["name"] = "warp drive"
    file = tmp_path / "other.json"
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="unknown path 'warp drive'"):
        read_baseline(file)


def test_a_file_chooses_no_code_to_run(measured: Path, tmp_path: Path) -> None:
    record = json.loads(measured.read_text())
    record["job"]["model"] = "os:abort"
    file = tmp_path / "other.json"
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="names the code 'os:abort', which no file may choose"):
        read_baseline(file)


def test_a_file_of_peers_is_taken(peers: Path) -> None:
    baseline = read_baseline(peers)
    (then,) = baseline.results.comparisons
    assert baseline.results.peers and then.reference is then.by_name["eager NCHW"]
    report = run_compare(baseline, baseline.jobs(), tolerance=90)
    assert [row.path for row in report.changes[0]] == ["ours", "ours labels"]
    assert report.ok
