import os

import pytest

from fassd.training.logs import CSVLog, open_board


@pytest.mark.parametrize("link", ["symlink", "link"])
def test_rows_are_appended_to_no_other_file(tmp_path, link):
    victim, path = tmp_path / "victim", tmp_path / "log.csv"
    victim.write_text("# mine\n")
    getattr(os, link)(victim, path)
    log = CSVLog(path, ["step", "loss"], after=0)
    log.write([(1, 0.5)])
    assert path.read_text() == "step,loss\n1,0.5\n" and not path.is_symlink()
    path.unlink()
    getattr(os, link)(victim, path)
    with pytest.raises(OSError, match=r"log\.csv: is a"):
        log.write([(2, 0.25)])
    assert victim.read_text() == "# mine\n"
    path.unlink()
    path.write_text("step,loss\n")
    log.write([(3, 0.125)])
    assert path.read_text() == "step,loss\n2,0.25\n3,0.125\n"


def test_nobody_foresees_the_name_of_an_event_file(tmp_path):
    names = set()
    for run in ("a", "b"):
        open_board(tmp_path / run, after=0).close()
        [name] = os.listdir(tmp_path / run)
        names.add(name.rpartition(".")[2])
    assert len(names) == 2 and all(len(name) == 8 for name in names)
