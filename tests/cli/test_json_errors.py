"""With ``--json`` a command that fails prints one JSON document with the message, a hint and the exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from memskill_cli.cli import app as cli
from memskill_cli.cli.console import console
from memskill_cli.errors import BudgetExceededError, DataError


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["memskill", *arguments])
    monkeypatch.setattr(cli, "own_process", lambda: None)
    monkeypatch.setattr(cli.signals, "exit_process", lambda code: None)
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--dataset", "tickets"], "no dataset is called tickets"),
        (["eval", "--jsn"], "No such option: --jsn"),
        (["train", "--seed", "two"], "Invalid value for '--seed'"),
    ],
)
def test_wrong_usage_is_one_document(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run([*arguments, "--json"], monkeypatch, capsys)
    error = json.loads(out)["error"]
    assert message in error["message"]
    assert (code, error["code"]) == (2, 2)
    assert error["hint"]
    assert "error" in err, "a person reads it too"


def test_without_json_nothing_is_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "--dataset", "tickets"], monkeypatch, capsys)[:2] == (2, "")


def test_success_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = run(["inspect-skills", "--runs-dir", str(tmp_path), "--json"], monkeypatch, capsys)
    assert code == 0
    assert "error" not in json.loads(out)


@pytest.mark.parametrize(("error", "code"), [(DataError("bad", hint="mend it"), 1), (BudgetExceededError("spent"), 3)])
def test_the_exit_code_is_in_the_document(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(cli.typer.Exit) as ended, console(json=True, quiet=False, debug=False):
        raise error
    assert ended.value.exit_code == code
    found = json.loads(capsys.readouterr().out)["error"]
    assert (found["message"], found["code"]) == (str(error), code)
