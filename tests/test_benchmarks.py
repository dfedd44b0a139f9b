"""The benchmarks can be called, and what they save becomes one table. Nothing here reads a clock."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import what is beside them."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_is_compared(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: {script}.py" in said
    assert "--quick" in said


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What two scripts have saved, and a third in a form of its own."""
    import common

    monkeypatch.setattr(common, "OUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["startup.py", "--quick"])
    common.save("startup", [common.limited("--help", 0.4, "s", 0.5), common.Measure("modules | all", 12_345, "")])
    common.save("retrieval", [common.compared("top-20", 3.0, "ms", "numpy", 1.5, at_most=1.5)], rows=[{"bank": "ours"}])
    (tmp_path / "learning.json").write_text('{"seeds": 5}')
    return tmp_path


def gathered(out: Path) -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "run.py"))["gather"](out)


def test_what_scripts_save_is_gathered_with_the_machine_it_was_measured_on(out: Path) -> None:
    found = gathered(out)
    assert list(found) == ["startup", "retrieval"]
    assert found["startup"]["machine"]["cores"] >= 1
    assert found["startup"]["flags"] == ["--quick"]
    [row] = found["retrieval"]["summary"]
    assert (row["ratio"], row["target"], row["reached"]) == (2.0, "≤ 1.5 ×", False)
    assert json.loads((out / "retrieval.json").read_text("utf-8"))["rows"] == [{"bank": "ours"}]


def test_the_table_says_what_was_reached_and_what_was_not(out: Path) -> None:
    text = runpy.run_path(str(FOLDER / "run.py"))["table"](gathered(out))
    assert "1 of 2 targets reached" in text
    assert "| --help | 0.4 s |  |  | ≤ 0.5 s | yes |" in text
    assert "| modules / all | 12,345 |  |  |  |  |" in text
    assert "| top-20 | 3 ms | numpy: 1.5 ms | 2 × | ≤ 1.5 × | **no** |" in text


def test_each_contestant_has_one_turn_a_round(out: Path) -> None:
    import common

    turns = list(common.in_turns(["a", "b", "c"], 20))
    assert sorted(turns) == [(turn, name) for turn in range(20) for name in "abc"]
    assert len({"".join(name for at, name in turns if at == turn) for turn in range(20)}) > 1
