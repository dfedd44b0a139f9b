"""Prompts that a model refuses: training goes on without them, counts them, and stops only above a share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.errors import ModelError
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.testing.server import Fault, MockLLMServer, Request
from memskill_cli.utils import files

from .resume_harness import Killed, Lives, outcome, reply

FILTERED = Fault.error(400, "The prompt triggers the content management policy", code="content_filter")


def server_that_refuses(*words: str) -> MockLLMServer:
    """Refuses every prompt about a span or a question that has one of ``words``."""

    def faults(request: Request) -> Fault | None:
        asked = request.messages[-1]["content"]
        return FILTERED if request.role != "designer" and any(word in asked for word in words) else None

    return MockLLMServer(reply, faults=faults)


@pytest.fixture
def server() -> Iterator[MockLLMServer]:
    with server_that_refuses("Bruno's allergy", "job of Ada") as serving:
        yield serving


def rows(run: RunDir) -> list[dict[str, Any]]:
    return list(files.read_jsonl(run.metrics))


def total(run: RunDir, name: str) -> int:
    return sum(row[name] for row in rows(run))


class KilledAtSkip(list[str]):
    """Stops a training at the first notice about prompts that are left out."""

    def append(self, text: str) -> None:
        super().append(text)
        if text.startswith("left out"):
            raise Killed


def test_a_training_goes_on_without_what_is_refused(server: MockLLMServer, tmp_path: Path) -> None:
    lives, told = Lives(tmp_path, server, train__evolve=False), list[str]()
    run = lives.begin("skips")
    lives.live(run, told=told)
    assert len(rows(run)) == lives.settings.train.outer_epochs * lives.settings.train.inner_epochs
    assert total(run, "skipped_spans") > 0
    assert total(run, "skipped_queries") > 0
    refused = [row for row in files.read_jsonl(run.steps) if row["reply"] == "refused"]
    assert all(not row["actions"] and row["memories_before"] == row["memories_after"] for row in refused)
    assert [text for text in told if "content management policy" in text]


def test_it_is_the_same_when_it_is_resumed(server: MockLLMServer, tmp_path: Path) -> None:
    lives = Lives(tmp_path, server, train__evolve=False)
    whole, parts = lives.begin("whole"), lives.begin("parts")
    lives.live(whole)
    with pytest.raises(Killed):
        lives.live(parts, told=KilledAtSkip(), cache="other")
    lives.live(parts, cache="other")
    assert outcome(parts) == outcome(whole)


def test_an_episode_whose_questions_are_all_refused_trains_nothing(tmp_path: Path) -> None:
    with server_that_refuses("of Chen") as server:
        lives = Lives(tmp_path, server, train__evolve=False, train__batch_size=3)
        run = lives.begin("unscored")
        lives.live(run)
    assert len(rows(run)) == 6
    assert total(run, "skipped_queries") == 12
    assert total(run, "queries") == 36


def test_a_run_stops_above_the_share_and_goes_on_when_it_is_raised(server: MockLLMServer, tmp_path: Path) -> None:
    strict = Lives(tmp_path, server, train__evolve=False, limits__max_skipped=0.0)
    run = strict.begin("strict")
    with pytest.raises(ModelError, match=r"limits\.max_skipped: .*content management policy") as stopped:
        strict.live(run)
    assert "--resume --set limits.max_skipped=" in stopped.value.hint
    assert total(run, "skipped_queries") == 0, "no line of the inner epoch that was stopped"
    loose = Lives(tmp_path, server, train__evolve=False)
    loose.live(run)
    assert total(run, "skipped_queries") > 0
