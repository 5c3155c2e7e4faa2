"""`levada bench`: it runs what the current folder's benchmarks are, and says what it needs."""

from __future__ import annotations

import pytest

from levada.cli import main


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks"
    (folder / "verdicts").mkdir(parents=True)
    for name in ("__init__.py", "measure.py", "verdicts/__init__.py"):
        (folder / name).touch()
    (folder / "speed.py").write_text(
        'import sys\nif __name__ == "__main__":\n    open("ran", "w").write(str(sys.argv[1:]))'
    )
    (folder / "verdicts" / "__main__.py").write_text("import sys\nsys.exit(4)")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_name_it_lists_what_can_be_run(checkout, capsys):
    assert main(["bench"]) == 0
    assert capsys.readouterr().out == "speed\nverdicts\n"


def test_a_benchmark_runs_with_what_was_asked(checkout):
    assert main(["bench", "speed", "--quick"]) == 0
    assert (checkout / "ran").read_text() == "['--quick']"


def test_one_that_fails_is_told(checkout, capsys):
    assert main(["bench", "verdicts"]) == 3
    assert "verdicts ended with exit code 4" in capsys.readouterr().err


def test_an_unknown_name_is_refused_before_anything_runs(checkout, capsys):
    assert main(["bench", "speed", "spede"]) == 2
    assert "There is no benchmark 'spede'. There are: speed, verdicts." in capsys.readouterr().err
    assert not (checkout / "ran").exists()


def test_outside_of_a_checkout_it_says_where_benchmarks_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench"]) == 2
    assert "run this in a checkout of levada" in capsys.readouterr().err
