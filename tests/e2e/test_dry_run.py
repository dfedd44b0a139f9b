"""``train --dry-run``: what it says is what the training then asks for, and it writes nothing."""

from __future__ import annotations

import json

from memskill_cli.testing.server import MockLLMServer
from memskill_cli.utils import files

from ..conftest import Home, tiny

SHORT = ["--outer-epochs", "1", "--inner-epochs", "2", "--batch-size", "3", "--no-evolve", "--seed", "7"]


def test_the_estimate_is_what_is_asked(prepared: Home) -> None:
    before = sorted(path for path in prepared.path.rglob("*") if path.is_file())
    with MockLLMServer() as server:
        flags = tiny(server.url, *SHORT, "--run", "a")
        told = prepared.memskill("train", *flags, "--dry-run", "--json")
        assert told.code == 0, told.err
        assert server.requests == [], "nothing is called"
        assert sorted(path for path in prepared.path.rglob("*") if path.is_file()) == before, "nothing is written"
        assert "--dry-run" not in prepared.memskill("train", *flags, "--dry-run").err.rpartition("next:")[2]
        done = prepared.memskill("train", *flags, "--quiet")
        assert done.code == 0, done.err
    expected = json.loads(told.out)["training"]
    bills = list(files.read_jsonl(prepared.path / "runs" / "a" / "usage.jsonl"))
    calls = {role: sum(bill["role"] == role for bill in bills) for role in ("executor", "answer")}
    assert expected["calls_by_role"].keys() == calls.keys()
    for role, number in calls.items():
        assert abs(expected["calls_by_role"][role] - number) <= 0.2 * number, (role, expected, calls)
    assert expected["usd"] is None, "the price of openai/rules is not known"


def test_data_that_are_not_prepared_are_not_prepared_by_it(home: Home) -> None:
    done = home.memskill("train", "--dataset", "locomo", "--dry-run")
    assert done.code == 1
    assert "memskill prepare --dataset locomo" in done.err
    assert list(home.path.iterdir()) == []
