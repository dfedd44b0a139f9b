"""The designer over real HTTP, against models that answer badly; and the rules for changes by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.agent.designer import Designer, FailedEdit, Proposal, SkillEdit, Style, apply
from memskill_cli.agent.designer_context import describe_attempts, describe_cases
from memskill_cli.agent.designer_parsing import parse_analysis, parse_refinement
from memskill_cli.agent.hard_cases import HardCase
from memskill_cli.agent.skill_edits import placeholder, safe_name, validate_edits
from memskill_cli.config import DesignerConfig
from memskill_cli.errors import ModelError, SkillBankError, UnreadableReplyError
from memskill_cli.scoring.evidence import FAILURES
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.skill import NAME, Skill, SkillStats
from memskill_cli.testing import rules
from memskill_cli.testing.server import Fault, MockLLMServer
from memskill_cli.types import Action

from ..factories import llm_client, make_ledger

BODY = "## Purpose\nKeep dates.\n\n## How to apply\n1. Write the date into the memory."
ADD = {
    "change": "add",
    "name": "save_dates",
    "description": "The text says when something happened.",
    "body": BODY,
    "action": "insert",
    "why": "dates are missing",
}
REFINE = {"change": "refine", "name": "insert", "body": BODY, "why": "sharper"}
ANALYSIS = {
    "patterns": [{"name": "no dates", "cases": [1, 2], "cause": "storage", "explanation": "none", "fix": "dates"}],
    "recommendations": [{"change": "add", "skill": "save_dates", "why": "no dates", "priority": "high"}],
    "summary": "Dates are missing.",
}
CASES = [
    [HardCase("q1", "t1", "2", "When did Ana move?", ("May 2023", "5/2023"), "in spring", ("Ana moved.",), 0.1, 3, 7)],
    [HardCase("q2", "t1", "4", "Where is Bo's cat?", ("with\nhis aunt",), "", (), 0.0, 1, 7)],
]
CONFIG = DesignerConfig(reflection_rounds=1)


def refinement(*changes: Any, summary: str = "Store dates.") -> str:
    return json.dumps({"summary": summary, "changes": changes})


def cycle(
    folder: Path,
    replies: Any,
    *,
    config: DesignerConfig = CONFIG,
    bank: SkillBank | None = None,
    attempts: Sequence[FailedEdit] = (),
    style: Style = "conversational",
    **options: Any,
) -> tuple[Proposal, list[str]]:
    """One cycle against ``replies``: what was proposed, and all prompts that were sent."""
    with MockLLMServer(replies if callable(replies) else {"designer": replies}) as server:

        async def work() -> Proposal:
            ledger = make_ledger(folder / "usage.jsonl")
            llm = llm_client(server.url, model="openai/any", timeout=20.0, keys=["key"], ledger=ledger)
            try:
                return await Designer(llm, config, style, **options).propose(
                    bank or seed_bank(noop=False), CASES, attempts
                )
            finally:
                await llm.aclose()

        proposal = asyncio.run(work())
        assert {request.role for request in server.requests} <= {"designer"}
        prompts = [request.text for request in server.requests]
    assert len(set(prompts)) == len(prompts), "no prompt is sent twice"
    return proposal, prompts


# --- a cycle that goes well ---


def test_analysis_reflections_refinement(tmp_path: Path) -> None:
    analyses = [{**ANALYSIS, "summary": f"Round {i}."} for i in range(3)]
    replies = [*map(json.dumps, analyses), refinement(ADD)]
    proposal, prompts = cycle(tmp_path, replies, config=DesignerConfig(reflection_rounds=3))
    assert proposal.summary == "Store dates."
    assert proposal.analysis == analyses[-1]
    assert proposal.refused == ()
    (change,) = proposal.changes
    assert change == SkillEdit("add", "save_dates", ADD["description"], BODY, Action.INSERT, "dates are missing")
    assert ["Round 0" in prompt for prompt in prompts] == [False, True, False, False]
    assert ["Round 2" in prompt for prompt in prompts] == [False, False, False, True]
    shared = [prompt[: prompt.index("</cases>")] for prompt in prompts]
    assert len(set(shared)) == 1, "all prompts begin alike"


def test_a_reflection_that_changes_nothing_is_the_last(tmp_path: Path) -> None:
    replies = [json.dumps(ANALYSIS), json.dumps(ANALYSIS), refinement(ADD)]
    proposal, prompts = cycle(tmp_path, replies, config=DesignerConfig(reflection_rounds=9))
    assert len(prompts) == 3
    assert len(proposal.changes) == 1


def test_the_designer_sees_cases_and_skills(tmp_path: Path) -> None:
    _, (analysis, last) = cycle(tmp_path, [json.dumps(ANALYSIS), refinement(ADD)])
    assert analysis.startswith("You are the designer")
    assert "Case 1 (category 2, failed 3 times, last score 0.10)\nQuestion: When did Ana move?\n" in analysis
    assert "Truth: May 2023 / 5/2023\nPrediction: in spring\n" in analysis
    assert "[0] Ana moved." in analysis
    assert "Truth: with his aunt\nPrediction: (nothing)\nMemories retrieved, nearest first:\n(none)" in analysis
    for skill in seed_bank(noop=False).skills:
        assert skill.description in analysis
        assert skill.body not in analysis
        assert skill.body in last
    assert "1 change" in last


def test_where_evidence_was_lost_is_told_only_where_it_is_known() -> None:
    without = describe_cases(CASES, "conversational", 20, 10_000)
    assert "Evidence" not in without
    told = {}
    for stage in FAILURES:
        known = [[replace(CASES[0][0], stage=stage)], CASES[1]]
        first, second = describe_cases(known, "conversational", 20, 10_000).split("Group 2")
        (line,) = [line for line in first.splitlines() if line.startswith("Evidence: ")]
        told[stage] = line.removeprefix("Evidence: ")
        assert first.replace(line + "\n", "") + "Group 2" + second == without, "nothing else changes"
    assert told == {
        "not_stored": "was not stored in memory",
        "lost": "was stored, then overwritten or deleted",
        "not_retrieved": "was stored, not retrieved",
        "not_used": "was retrieved, not used in the answer",
    }


def test_what_held_out_questions_showed_is_told_in_place_of_rewards() -> None:
    rewards = FailedEdit(2, "Pets.", ({**ADD, "description": None, "body": None},), 0.6, 0.5)
    assert describe_attempts([rewards], 10_000).startswith(
        "Stage 2, tried, did not help (reward 0.6000, the best without it 0.5000): Pets.\n"
    )
    measured = replace(rewards, measured="60 held-out questions: worse")
    assert describe_attempts([measured], 10_000).startswith(
        "Stage 2, tried, did not help (60 held-out questions: worse): Pets.\n"
    )


def test_embodied_wording(tmp_path: Path) -> None:
    _, (prompt, _) = cycle(tmp_path, [json.dumps(ANALYSIS), refinement()], style="embodied")
    assert prompt.startswith("You are the designer")
    assert "precondition" in prompt
    assert "Goal: When did Ana move?" in prompt
    assert "Question:" not in prompt


def test_what_was_tried_is_shown(tmp_path: Path) -> None:
    tried = SkillEdit("add", "save_pets", "pets", "Write every pet down.", Action.INSERT, "pets are missing").to_dict()
    again = SkillEdit("refine", "update", None, "Reworded.", None, "too vague").to_dict()
    attempts = [FailedEdit(2, "Pets.", (tried, again), 0.25, 0.5), FailedEdit(3, "Only retrieval.", (), None, None)]
    _, prompts = cycle(tmp_path, [json.dumps(ANALYSIS), refinement()], attempts=attempts)
    for prompt in prompts:
        assert "Stage 2, tried, did not help (reward 0.2500, the best without it 0.5000): Pets." in prompt
        assert "- add save_pets: pets are missing\n  description: pets\n  body: Write every pet down." in prompt
        assert "- refine update: too vague\n  body: Reworded." in prompt
        assert "Stage 3, nothing was changed: Only retrieval." in prompt


def test_cases_are_cut_to_a_small_window(tmp_path: Path) -> None:
    long = replace(CASES[0][0], retrieved=tuple(f"memory {i} " + "x" * 900 for i in range(20)))
    CASES.append([replace(long, query_id=f"q{i}") for i in range(3, 13)])
    try:
        _, (prompt, _) = cycle(tmp_path, [json.dumps(ANALYSIS), refinement()], max_chars=8000)
        _, (rich, _) = cycle(tmp_path, [json.dumps(ANALYSIS), refinement()], max_chars=10**6)
    finally:
        CASES.pop()
    cases = prompt[prompt.index("<cases>") : prompt.index("</cases>")]
    assert len(cases) < 8100
    assert cases.count("[0] memory 0") == 10
    assert rich.count("[19] memory 19") == 10


def test_bodies_and_attempts_are_cut_to_a_small_window(tmp_path: Path) -> None:
    bank = seed_bank(noop=False)
    bank.add(Skill("zebra", "d", "x" * 3000, Action.INSERT, "import"))
    advice = {"change": "refine", "skill": "zebra", "why": "", "priority": "high"}
    attempts = [FailedEdit(i, f"Try {i}." + "x" * 400, (), None, None) for i in range(8)]
    replies = [json.dumps({**ANALYSIS, "recommendations": [advice]}), refinement()]
    _, (first, last) = cycle(tmp_path, replies, bank=bank, attempts=attempts, max_chars=8000)
    assert [f"Try {i}." in first for i in range(8)] == [False] * 4 + [True] * 4
    assert "### zebra\nAction type: INSERT\nxxx" in last
    assert "Not shown, so leave these bodies alone: insert, update" in last


# --- a cycle that goes badly ---


def test_nonsense_is_refused_and_told(tmp_path: Path) -> None:
    proposal, prompts = cycle(tmp_path, "I would rather talk about the weather.")
    assert proposal.changes == ()
    assert proposal.analysis == {}
    assert len(proposal.refused) == 3
    assert all("expected a JSON object" in reason for reason in proposal.refused)
    assert len(prompts) == 6, "three tries, each asked again once by the gateway"
    assert all("expected a JSON object" in prompt for prompt in prompts[1:])


def test_a_reflection_that_cannot_be_read_leaves_the_analysis(tmp_path: Path) -> None:
    replies = [json.dumps(ANALYSIS), "no", "no", refinement(ADD)]
    proposal, _ = cycle(tmp_path, replies, config=DesignerConfig(reflection_rounds=2))
    assert proposal.analysis == ANALYSIS
    assert len(proposal.changes) == 1
    assert len(proposal.refused) == 1


def test_an_empty_list_is_no_change_and_final(tmp_path: Path) -> None:
    proposal, prompts = cycle(tmp_path, [json.dumps(ANALYSIS), refinement(summary="Nothing to do.")])
    assert (proposal.changes, proposal.refused, proposal.summary) == ((), (), "Nothing to do.")
    assert len(prompts) == 2


def test_retrieval_failures_alone_justify_no_change(tmp_path: Path) -> None:
    pattern = {**ANALYSIS["patterns"][0], "cause": "Retrieval failure"}  # type: ignore[dict-item]
    proposal, prompts = cycle(tmp_path, [json.dumps({**ANALYSIS, "patterns": [pattern]}), refinement(ADD)])
    assert proposal.changes == ()
    assert len(prompts) == 1
    mixed = {**ANALYSIS, "patterns": [pattern, *ANALYSIS["patterns"]]}
    assert cycle(tmp_path, [json.dumps(mixed), refinement(ADD)])[0].changes


def test_the_rule_made_designer_changes_nothing(tmp_path: Path) -> None:
    proposal, _ = cycle(tmp_path, rules.reply, config=DesignerConfig())
    assert (proposal.changes, proposal.refused) == ((), ())
    assert proposal.summary == "The rules propose no change."


def test_no_cases_no_call(tmp_path: Path) -> None:
    with MockLLMServer() as server:
        designer = Designer(None, CONFIG)  # type: ignore[arg-type]
        assert asyncio.run(designer.propose(seed_bank(noop=False), [[], []], ())).changes == ()
        assert not server.requests


def test_a_call_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        cycle(tmp_path, [json.dumps(ANALYSIS), Fault.server_error()])
    assert not isinstance(error.value, UnreadableReplyError)


REFUSED = {
    "empty body": ({**ADD, "body": " \n"}, "body is empty"),
    "no body": ({k: v for k, v in ADD.items() if k != "body"}, "body is empty"),
    "no description": ({**ADD, "description": None}, "description is empty"),
    "long body": ({**ADD, "body": "x" * 100_000}, "body has 100000 bytes, at most 20000"),
    "long description": ({**ADD, "description": "x" * 1025}, "description has 1025 characters"),
    "illegal action": ({**ADD, "action": "delete"}, '"action" is \'delete\', expected "insert" or "update"'),
    "noop": ({**ADD, "action": "noop"}, "\"action\" is 'noop'"),
    "no action": ({**ADD, "action": None}, "\"action\" is ''"),
    "placeholder": ({**ADD, "body": "Read {span} and write."}, "body has the placeholder {span}"),
    "in the description": ({**ADD, "description": "For {{text}}."}, "description has the placeholder {{text}}"),
    "taken": ({**ADD, "name": "Insert"}, "already called insert"),
    "no name": ({**ADD, "name": "../!"}, "'../!' is no name"),
    "body a list": ({**ADD, "body": ["a"]}, "body is not a text"),
    "attribute of an added skill": ({**ADD, "stats": {"uses": 9}}, "an added skill has no 'stats'"),
    "unknown kind": ({**ADD, "change": "remove"}, "\"change\" is 'remove'"),
    "unknown skill": ({**REFINE, "name": "inserts"}, "no skill is called inserts: did you mean insert?"),
    "unknown skill, nothing near": ({**REFINE, "name": "zzz"}, "there are delete, insert, update"),
    "another attribute": ({**REFINE, "action": "delete"}, "description and body only, not 'action'"),
    "statistics": ({**REFINE, "stats": {}}, "description and body only, not 'stats'"),
    "nothing": ({"change": "refine", "name": "insert"}, "changes neither description nor body of insert"),
    "the same": ({**REFINE, "body": seed_bank(noop=False)["insert"].body + "\n"}, "changes neither"),
    "emptied": ({**REFINE, "body": ""}, "body is empty"),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_and_why(change: dict[str, Any], reason: str) -> None:
    good, (refused,) = validate_edits(seed_bank(noop=False), [change])
    assert good == []
    assert reason in refused


@pytest.mark.parametrize("name", ["long body", "illegal action", "unknown skill", "placeholder"])
def test_the_model_is_told_and_may_mend_it(tmp_path: Path, name: str) -> None:
    change, reason = REFUSED[name]
    proposal, prompts = cycle(tmp_path, [json.dumps(ANALYSIS), refinement(change), refinement(ADD)])
    assert [change.name for change in proposal.changes] == ["save_dates"]
    assert len(proposal.refused) == 1
    assert reason not in prompts[1]
    assert reason in prompts[2]
    assert len(prompts[2]) < len(prompts[1]) + 1000, "the reply itself is not sent back"


def test_what_stays_refused_is_no_change(tmp_path: Path) -> None:
    proposal, prompts = cycle(tmp_path, [json.dumps(ANALYSIS), refinement({**ADD, "action": "delete"})])
    assert proposal.changes == ()
    assert len(prompts) == 4
    assert len(proposal.refused) == 3
    assert prompts[3].count('expected "insert" or "update"') == 2


def test_what_is_good_in_a_reply_is_kept(tmp_path: Path) -> None:
    replies = [json.dumps(ANALYSIS), refinement({**REFINE, "name": "nobody"}, ADD)]
    proposal, prompts = cycle(tmp_path, replies)
    assert [change.name for change in proposal.changes] == ["save_dates"]
    assert len(proposal.refused) == 1
    assert len(prompts) == 2


def test_too_many_changes_are_sent_back(tmp_path: Path) -> None:
    replies = [json.dumps(ANALYSIS), refinement(ADD, REFINE), refinement(REFINE)]
    proposal, prompts = cycle(tmp_path, replies)
    assert [change.name for change in proposal.changes] == ["insert"]
    assert "2 changes, at most 1 allowed" in prompts[2]


def test_of_too_many_changes_to_the_end_the_first_stand(tmp_path: Path) -> None:
    replies = [json.dumps(ANALYSIS), refinement(ADD, REFINE, {**REFINE, "name": "update"})]
    proposal, prompts = cycle(tmp_path, replies, config=replace(CONFIG, max_changes=2))
    assert [change.name for change in proposal.changes] == ["save_dates", "insert"]
    assert len(prompts) == 4
    assert proposal.refused == ("3 changes, at most 2 allowed: keep only the most valuable",) * 3


def test_the_same_skill_twice_and_refining_what_is_added() -> None:
    drafts = [ADD, REFINE, {**ADD, "name": "save-dates"}, {**REFINE, "name": "Save Dates"}, {**REFINE, "body": "x"}]
    good, refused = validate_edits(seed_bank(noop=False), drafts)
    assert [change.name for change in good] == ["save_dates", "insert"]
    assert refused == [
        "change 3 (add save-dates): save-dates is added in this very reply: say it in one change",
        "change 4 (refine Save Dates): save_dates is added in this very reply: say it in one change",
        "change 5 (refine insert): insert is changed in this reply already: say it in one change",
    ]


def test_a_refinement_may_repeat_the_action_and_spell_the_name_freely() -> None:
    (change,), refused = validate_edits(
        seed_bank(noop=False), [{**REFINE, "name": "INSERT", "action": "Insert", "description": None}]
    )
    assert change == SkillEdit("refine", "insert", None, BODY, None, "sharper")
    assert refused == []


# --- names, placeholders, replies ---


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("../x", "x"),
        ("Save Dates!", "save_dates"),
        ("  `track-moves` ", "track-moves"),
        ("Überblick über Café", "uberblick_uber_cafe"),
        ("C:\\con.txt", "c_con_txt"),
        ("_" * 9 + "a" * 99, "a" * 64),
        ("日本", ""),
        ("..", ""),
    ],
)
def test_names_become_identifiers(written: str, name: str) -> None:
    assert safe_name(written) == name


@given(st.text())
def test_a_name_is_an_identifier_or_nothing(text: str) -> None:
    name = safe_name(text)
    assert name == "" or NAME.fullmatch(name)
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "text",
    [
        *["{span}", "{{ anything }}", "<span>", "<the conversation>", "[[x]]", "${text}", "%(span)s", "<<history>>"],
        *["[INSERT TEXT HERE]", "[SPAN]", "[conversation here]", "{retrieved_memories}", "{% for m in memories %}"],
    ],
)
def test_placeholders(text: str) -> None:
    assert placeholder(f"Look at this: {text}, then write.") == text


@pytest.mark.parametrize(
    "text",
    [
        'Write {"date": "May"}.',
        "2 < 3 and 5 > 4",
        "<city>, {name}",
        "[0] is the first",
        "[this text](x)",
        "- [ ] memory",
        "[Ana] said [memory]",
        BODY,
        *(skill.body for skill in seed_bank(noop=True).skills),
    ],
)
def test_no_placeholders(text: str) -> None:
    assert placeholder(text) is None


@pytest.mark.parametrize(
    "reply",
    [
        "Here it is:\n```json\n%s\n```\nGood luck!",
        'Draft: {"changes": []}\nFinal: %s',
        "%s",
    ],
)
@pytest.mark.parametrize("mangle", [str, lambda text: text.replace('"changes"', '"Changes"'), lambda t: t[:-1] + ",}"])
def test_replies_are_read_tolerantly(reply: str, mangle: Any) -> None:
    found = parse_refinement(reply % mangle(refinement(ADD, REFINE)))
    assert found.changes == (ADD, REFINE)
    assert found.summary == "Store dates."


@pytest.mark.parametrize(
    "reply",
    [
        *["", "[]", "{}", "null", '{"changes": {}}', '{"changes": "none"}', '{"changes": [1]}', '{"patterns": []}'],
        *["{" * 50_000, '{"changes": ' * 5_000, '{"changes": [' + '{"' * 20_000],
    ],
)
def test_unreadable_refinements(reply: str) -> None:
    with pytest.raises(UnreadableReplyError):
        parse_refinement(reply)


def test_an_analysis_is_put_in_order() -> None:
    found = parse_analysis(
        json.dumps(
            {
                "Patterns": [
                    {"cause": "Memory-Quality failure", "cases": ["case 2", 1, 2, 0, 99, 10**30], "name": "a\u0000\nb"},
                    {"cause": "storage_failure", "cases": "1 and 2", "explanation": "x" * 5000, "secret": float("nan")},
                ],
                "recommendations": [{"change": "REFINE", "priority": 1}],
            }
        ),
        cases=2,
    )
    first, second = found["patterns"]
    assert first == {"name": "a b", "cases": [1, 2], "cause": "quality", "explanation": "", "fix": ""}
    assert (second["cause"], second["cases"], len(second["explanation"])) == ("storage", [1, 2], 1000)
    assert found["recommendations"] == [{"change": "refine", "skill": "", "why": "", "priority": "1"}]
    assert found["summary"] == ""


def test_an_unknown_cause_is_named() -> None:
    with pytest.raises(UnreadableReplyError, match=r"patterns\[0\]\.cause.*bad luck"):
        parse_analysis('{"patterns": [{"cause": "bad luck"}]}', 3)


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*ADD, "stats", "x"]) | st.text(max_size=8), inner, max_size=6)
    ),
)
FIELDS = sorted({"stats", *ADD} - {"change"})
_wild_change = st.fixed_dictionaries(
    {"change": st.sampled_from(["add", "refine", "ADD", 1])},
    optional={key: _json | st.sampled_from(["insert", "update", "new", "\ud800"]) for key in FIELDS},
)


@given(st.lists(_wild_change | st.dictionaries(st.text(max_size=6), _json), max_size=4))
def test_any_refinement_is_reviewed_and_what_is_accepted_fits(drafts: list[Any]) -> None:
    bank = seed_bank(noop=False)
    good, refused = validate_edits(bank, parse_refinement(json.dumps({"changes": drafts})).changes)
    assert len(good) + len(refused) == len(drafts)
    proposal = Proposal("", tuple(good), refused=tuple(refused))
    evolved = apply(bank, proposal, stage=1)
    assert orjson.loads(orjson.dumps(proposal.to_dict()))["refused"] == refused
    assert SkillBank.from_json(evolved.to_json(), "bank") == evolved
    assert bank == seed_bank(noop=False)


@given(st.text() | _json.map(lambda value: json.dumps({"patterns": [value], "changes": [value]})))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UnreadableReplyError):
        assert set(orjson.loads(orjson.dumps(parse_analysis(text, 3)))) == set(ANALYSIS)
    with contextlib.suppress(UnreadableReplyError):
        assert all(isinstance(change, dict) for change in parse_refinement(text).changes)


# --- applying ---


def test_applying_changes_a_copy() -> None:
    bank = seed_bank(noop=False)
    bank.mark_new(["delete"])
    changes, _ = validate_edits(bank, [ADD, REFINE])
    evolved = apply(bank, Proposal("", tuple(changes)), stage=4)
    assert bank.names == ("delete", "insert", "update")
    assert bank["insert"] == seed_bank(noop=False)["insert"]
    assert (bank.stage, bank.new) == (0, {"delete"})

    assert (evolved.stage, evolved.new) == (4, {"insert", "save_dates"})
    added, refined = evolved["save_dates"], evolved["insert"]
    assert added == Skill("save_dates", ADD["description"], BODY, Action.INSERT, "designer", 4, 4)
    assert (refined.body, refined.description) == (BODY, bank["insert"].description)
    assert (refined.origin, refined.created_stage, refined.modified_stage) == ("seed", 0, 4)


def test_a_full_bank_gives_up_its_worst_even_if_just_refined() -> None:
    bank = SkillBank([*seed_bank(noop=False).skills], capacity=4)
    bank.add(Skill("poor", "d", "b", Action.INSERT, "designer", stats=SkillStats(5, -1.0)))
    changes, _ = validate_edits(bank, [ADD, {**REFINE, "name": "poor"}])
    evolved = apply(bank, Proposal("", tuple(changes)), stage=1)
    assert evolved.names == ("delete", "insert", "save_dates", "update")
    assert evolved.new == {"save_dates"}


def test_a_proposal_for_another_bank_is_an_error() -> None:
    changes, _ = validate_edits(seed_bank(noop=False), [ADD])
    once = apply(seed_bank(noop=False), Proposal("", tuple(changes)), 1)
    with pytest.raises(SkillBankError, match="already called save_dates"):
        apply(once, Proposal("", tuple(changes)), 2)


def test_changes_round_trip() -> None:
    changes, _ = validate_edits(seed_bank(noop=False), [ADD, REFINE])
    assert len(changes) == 2
    for change in changes:
        row = json.loads(json.dumps(change.to_dict()))
        assert SkillEdit.from_dict(row) == change
        assert row["change"] in ("add", "refine")
