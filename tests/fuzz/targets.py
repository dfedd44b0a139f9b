"""What is fuzzed: one function for each form in which something foreign comes in, and seeds that are nearly right.

A target returns for whatever it is given: it was read, or refused with the error that is meant for it. What was read
keeps its bounds. Anything else is a finding.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable

import orjson

from memskill_cli.agent.answerer import truncate_middle
from memskill_cli.agent.designer_parsing import CAUSES, parse_analysis, parse_refinement
from memskill_cli.agent.env_runner import parse_command
from memskill_cli.agent.parsing import check_actions, parse_reply
from memskill_cli.agent.skill_edits import MAX_WHY, apply_edits, validate_edits
from memskill_cli.datasets.registry import get
from memskill_cli.errors import SkillBankError, UnreadableReplyError
from memskill_cli.evaluation.methods import mem0
from memskill_cli.evaluation.methods.external import read_object
from memskill_cli.llm.reasoning import read_reply, strip_reasoning
from memskill_cli.scoring.judge import SCORES, parse_verdict
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.markdown import from_markdown, to_markdown
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.skill import faults
from memskill_cli.types import Action, Query

ALLOWED = {Action.INSERT, Action.UPDATE}
SHOWN, LONGEST, MOST = 3, 200, 4
CASES = 5
COMMANDS = ("go to fridge 1", "take apple 1 from fridge 1", "look", "inventory")
BANK = seed_bank(noop=False)
_QUOTES = re.compile(r"[\"'`“‘]|memory|content|text", re.IGNORECASE)
"""What makes a mark behind it on its line part of the text."""


def executor(text: str) -> None:
    """No action that is not allowed, no memory that was not shown, nothing too long, too many or twice."""
    reply = parse_reply(text)
    actions, rejected = check_actions(reply.actions, allowed=ALLOWED, shown=SHOWN, max_chars=LONGEST, max_actions=MOST)
    assert len(actions) <= MOST
    assert {action.action for action in actions} <= ALLOWED | {Action.NOOP}
    writes = [action for action in actions if action.action is not Action.NOOP]
    assert all(action.text.strip() and len(action.text) <= LONGEST for action in writes)
    indices = [action.index for action in actions if action.action is Action.UPDATE]
    assert all(index in range(SHOWN) for index in indices)
    assert len(set(indices)) == len(indices)
    assert min(rejected.values(), default=1) > 0
    orjson.dumps(actions)


def reasoning(text: str) -> None:
    """What is left of a reply is a part of it, and has no reasoning any more."""
    for cut in (False, True):
        with contextlib.suppress(UnreadableReplyError):
            said = read_reply(text, cut)
            assert said.cut is cut
            assert len(said) <= len(text)
    unquoted = _QUOTES.sub("", text)
    assert "</think>" not in (strip_reasoning(f"{unquoted}\n</think>\n") or "")


def judge(text: str) -> None:
    for cut in (False, True):
        with contextlib.suppress(UnreadableReplyError):
            assert parse_verdict(text, cut=cut) in SCORES


def answer(text: str) -> None:
    kept = truncate_middle(text, 500)
    assert len(kept) <= 600
    for dataset, category in (("locomo", "multi-hop"), ("hotpotqa", "")):
        query = Query("q", "t", category, "Who?", ("Ana, Bo", "7 May 2023"))
        assert 0 <= get(dataset).score(query, kept) <= 1


def analysis(text: str) -> None:
    with contextlib.suppress(UnreadableReplyError):
        found = parse_analysis(text, CASES)
        assert set(found) == {"patterns", "recommendations", "summary"}
        assert all(pattern["cause"] in CAUSES for pattern in found["patterns"])
        assert all(set(pattern["cases"]) <= set(range(1, CASES + 1)) for pattern in found["patterns"])
        orjson.dumps(found)


def refinement(text: str) -> None:
    """What is accepted fits the bank: its rules hold, its size too, and no skill is lost or has another action."""
    try:
        reply = parse_refinement(text)
    except UnreadableReplyError:
        return
    changes, refused = validate_edits(BANK, reply.changes)
    assert len(changes) <= 20
    assert sum(map(len, refused)) < 20_000
    bank = apply_edits(BANK, changes, 1)
    assert not [fault for skill in bank.skills for fault in faults(skill.name, skill.description, skill.body)]
    assert {name: bank[name].action for name in BANK.names} == {name: BANK[name].action for name in BANK.names}
    assert {skill.action for skill in bank.skills if skill.name not in BANK} <= ALLOWED
    assert all(len(change.why) <= MAX_WHY for change in changes)
    orjson.dumps([change.to_dict() for change in changes])


def command(text: str) -> None:
    assert parse_command(text, COMMANDS) in (None, *COMMANDS)


def bank(text: str) -> None:
    with contextlib.suppress(SkillBankError):
        assert SkillBank.from_json(SkillBank.from_json(text, "file").to_json(), "again").names


def skill(text: str) -> None:
    with contextlib.suppress(SkillBankError):
        read = from_markdown(text)
        assert not faults(read.name, read.description, read.body)
        assert from_markdown(to_markdown(read)).name == read.name


def systems(text: str) -> None:
    """What Mem0 and LangMem are handed."""
    for parse in (mem0._facts, mem0._changes, lambda said: read_object(said, "calls")):
        with contextlib.suppress(UnreadableReplyError):
            json.dumps(parse(text), ensure_ascii=False).encode()


Target = Callable[[str], None]
TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (reasoning, executor, judge, answer, analysis, refinement, command, bank, skill, systems)
}

_CHANGES = """{"summary": "Dates.", "changes": [{"change": "add", "name": "save_dates", "description": "Days.",
"body": "## Purpose\\nWrite the day.", "action": "insert", "why": "no dates"}, {"change": "refine", "name": "insert",
"description": "New facts.", "body": null, "why": "vague"}]}"""
_ANALYSIS = """{"patterns": [{"name": "no dates", "cases": [1, 4], "cause": "storage", "explanation": "x", "fix": "y"}],
"recommendations": [{"change": "add", "skill": "save_dates", "why": "cures", "priority": "high"}], "summary": "z"}"""
_MARKDOWN = to_markdown(BANK["insert"])

SEEDS: dict[str, tuple[str, ...]] = {
    "executor": (
        "ACTION: INSERT\nMEMORY: Ana has a cat.\n\nACTION: UPDATE\nINDEX: 2\nMEMORY: Bo bakes.\n\nACTION: DELETE 0",
        '{"actions": [{"action": "insert", "memory": "Ana"}, {"action": "update", "index": 1, "memory": "Bo"}]}',
        "INSERT: Ana has a cat; DELETE: 1\nACTION: UPDATE; INDEX: 0; MEMORY: Bo = baker; ACTION: NOOP",
    ),
    "reasoning": (
        "<think>maybe</think>\nAna [THINK]x[/THINK] ◁think▷y◁/think▷<|im_end|>",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Ana<|return|>",
    ),
    "judge": ('{"explanation": "same day", "score": 0.5}', 'Well: {"score": 1}', "{'score': 0,}"),
    "answer": ("Thus <answer>Ana, Bo</answer>", "Answer: 7 May 2023", "Ana"),
    "analysis": (_ANALYSIS, f"```json\n{_ANALYSIS}\n```"),
    "refinement": (_CHANGES, f"```json\n{_CHANGES}\n```"),
    "command": ("Action: go to fridge 1", "I would take apple 1 from fridge 1 now.", "look"),
    "bank": (BANK.to_json(),),
    "skill": (_MARKDOWN, "# Title\n## Description\nFor days.\n## Purpose\nAction type: INSERT only."),
    "systems": ('{"facts": ["Ana has a cat."]}', '{"memory": [{"id": "0", "text": "Bo", "event": "ADD"}]}'),
}
WORDS = (
    "ACTION:", "INSERT", "UPDATE", "DELETE", "NOOP", "INDEX:", "MEMORY:", "<think>", "</think>", "<answer>", '"score":',
    '"changes": [', '"patterns": [', '"cause": "storage"', '"facts":', '"memory":', '{"', '"}', "[", "]", "{", "}",
    "\\n", "\\ud800", "1e999", "NaN", "-1", "99999999999", "---\n", "metadata:", "&a [", "*a", "<<: ", "../", "{span}",
)  # fmt: skip
"""What the formats are made of."""
