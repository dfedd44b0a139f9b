"""Methods with skills: the skills that are shown for each span, for every concurrency, and where they come from."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memskill_cli.agent.controller import Controller
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.skill import Skill
from memskill_cli.types import Action, Query, Session, Trace, Turn

from ..harness import Rig

LEARNED = [f"learned_{message}" for message in "abcdef"]
SHOWN_SEEDS = ["delete", "insert", "update"]
"""The seed skills that an executor is shown in an evaluation: noop is left out."""
NAMES = sorted([*SHOWN_SEEDS, *LEARNED])


def bank() -> SkillBank:
    learned = [
        Skill(name, f"What {name} is for.", f"Do what {name} says.", Action.INSERT, "designer") for name in LEARNED
    ]
    return SkillBank([*seed_bank().skills, *learned], stage=1)


def trace(name: str, sessions: int = 6) -> Trace:
    said = tuple(
        Session(f"s{i}", f"{i + 1} May 2025", (Turn(name, f"In garden number {i} I grow {i + 2} plums."),))
        for i in range(sessions)
    )
    query = Query(f"{name}-q", name, "single-hop", "How many plums grow in garden 3?", ("5",))
    return Trace(name, "locomo", "test", said, (query,))


def rig(folder: Path, **overrides: Any) -> Rig:
    made = Rig(folder, traces=[trace("Ana"), trace("Ben")], eval__judge=False, **overrides)
    made.train(bank())
    return made


def shown(rig: Rig) -> dict[str, list[str]]:
    """The names of the skills that were shown with each span, in order, by the text of the span."""
    return {
        re.findall(r"<span>\n(.*?)\n</span>", prompt, re.S)[-1]: re.findall(r"^### (\S+)$", prompt, re.M)
        for prompt in rig.prompts("executor")
    }


def test_the_controller_of_the_run_chooses_k_of_its_skills(tmp_path: Path) -> None:
    made = rig(tmp_path, eval__num_skills=4)
    summary = made.method("memskill")
    assert made.roles() == {"executor": 12, "answer": 2}
    assert all(3 <= len(set(names)) <= 4 and set(names) <= set(NAMES) for names in shown(made).values())
    assert summary["checkpoint"] == "000001"
    assert {
        span: names for span, names in shown(made).items() if "garden number 0 " in span
    } == best_of_the_first_spans(4)


def best_of_the_first_spans(k: int) -> dict[str, list[str]]:
    """The best skills by the controller of :meth:`Rig.train` for the first span of each trace, with empty memory."""
    with closing(load_encoder("hashing", cache_dir=None)) as encoder:
        controller, skills = Controller.seeded(encoder.dim, 16, 1), bank().skills
        spans = [f"[1 May 2025]\n{name}: In garden number 0 I grow 2 plums." for name in ("Ana", "Ben")]
        states = np.concatenate([encoder.encode(spans), np.zeros((2, encoder.dim), np.float32)], axis=1)
        described = torch.from_numpy(encoder.encode([skill.description for skill in skills]))
        best = controller(torch.from_numpy(states), described).logits_NS.topk(k).indices.tolist()
    chosen = [[skills[place].name for place in places] for places in best]
    return {span: [name for name in names if name != "noop"] for span, names in zip(spans, chosen, strict=True)}


def test_seed_skills_are_all_there_is_whatever_was_learned(tmp_path: Path) -> None:
    made = rig(tmp_path)
    summary = made.method("seed-skills")
    assert made.roles() == {"executor": 12, "answer": 2}
    assert all(sorted(names) == SHOWN_SEEDS for names in shown(made).values())
    assert summary["checkpoint"] == "untrained"


def test_random_skills_differ_by_span_and_never_by_concurrency(tmp_path: Path) -> None:
    one, many = rig(tmp_path / "1", eval__num_skills=3, limits__concurrency=1), rig(tmp_path / "2", eval__num_skills=3)
    summary = one.method("random-skills")
    many.method("random-skills")
    drawn = shown(one)
    assert drawn == shown(many)
    assert len(drawn) == 12
    assert all(2 <= len(set(names)) <= 3 for names in drawn.values()), "three, or two in addition to noop"
    assert len({tuple(names) for names in drawn.values()}) > 6, "a new draw for each span"
    assert len({name for names in drawn.values() for name in names} & set(LEARNED)) > 3
    assert summary["checkpoint"] == "none"


def test_another_seed_draws_others(tmp_path: Path) -> None:
    one, other = rig(tmp_path / "1", eval__num_skills=3), rig(tmp_path / "2", eval__num_skills=3, seed=1)
    one.method("random-skills")
    other.method("random-skills")
    assert shown(one) != shown(other)


def test_all_skills_are_shown_in_name_order_whatever_k(tmp_path: Path) -> None:
    made = rig(tmp_path, eval__num_skills=1)
    summary = made.method("all-skills")
    assert list(shown(made).values()) == [NAMES] * 12
    assert (summary["skills_shown"], summary["skills"], summary["checkpoint"]) == (10, 10, "none")


def test_all_skills_leave_half_of_a_known_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memskill_cli.llm.client.context_window", lambda model: 1600)
    made = rig(tmp_path)
    summary = made.method("all-skills")
    kept = summary["skills_shown"]
    assert 0 < kept < 10
    in_order = [name for name in sorted([*NAMES, "noop"])[:kept] if name != "noop"]
    assert all(names == in_order for names in shown(made).values())
    assert all(len(prompt) / 4 < 1600 for prompt in made.prompts("executor"))


def test_where_only_noop_is_chosen_no_call_is_made(tmp_path: Path) -> None:
    made = rig(tmp_path, eval__num_skills=3)
    made.train(SkillBank([seed_bank()["noop"]]))
    summary = made.method("memskill")
    assert made.roles() == {"answer": 2}
    assert summary["executor"] == {"replies": 0, "unreadable": 0, "cut": 0, "rejected": {}, "protected": {}}
    assert summary["memories"] == 0


@pytest.mark.parametrize("name", ["memskill", "seed-skills", "random-skills", "all-skills"])
def test_a_second_try_reads_nothing_again(tmp_path: Path, name: str) -> None:
    made = rig(tmp_path)
    first = made.method(name)
    (made.folder / "results.jsonl").unlink()
    second = made.method(name)
    assert made.roles() == {"answer": 2}, "the memory was stored; only the answers were lost"
    assert second["memories"] == first["memories"] > 0
