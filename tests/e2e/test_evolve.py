"""Stages, rollback and ``memskill evolve``, as typed, in the small world, whose designer is told what to propose."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.testing import rules
from memskill_cli.testing.server import MockLLMServer, Request

from ..toy_models import HARM, HELP, designed, is_refinement, read_or_answered


class World:
    """Models of the small world; ``proposals`` are what the designer says, one a refinement, the last repeating."""

    def __init__(self, *proposals: dict[str, Any]) -> None:
        self.proposals = list(proposals)
        self.seen: list[str] = []

    def __call__(self, request: Request) -> str:
        if request.role != "designer":
            return read_or_answered(request)
        self.seen.append(request.messages[-1]["content"])
        last = len(self.proposals) == 1 or not is_refinement(request)
        return designed(request, self.proposals[0] if last else self.proposals.pop(0))


def conversations() -> list[dict[str, Any]]:
    """Five conversations in LoCoMo's format, two facts each."""
    found = []
    for number, who in enumerate(("Ada", "Bruno", "Chen", "Dora", "Emil")):
        facts = (("job", "baker"), ("allergy", "pollen"))
        lines = [f"{who}'s job is baker, a job of early hours.", f"{who}'s allergy is pollen, so avoid the meadow."]
        turns = [{"speaker": who, "dia_id": f"D1:{i}", "text": text} for i, text in enumerate(lines)]
        qa = [
            {"question": f"What is the {kind} of {who}?", "answer": value, "category": 4, "evidence": []}
            for kind, value in facts
        ]
        talk = {"speaker_a": who, "speaker_b": "Zoe", "session_1_date_time": "1 May 2024", "session_1": turns}
        found.append({"sample_id": f"conv-{number}", "conversation": talk, "qa": qa})
    return found


class Place:
    """A home with the small world prepared, and one server."""

    def __init__(self, home: Any, server: MockLLMServer) -> None:
        self.home, self.server = home, server
        self.run = home.path / "runs" / "evo"

    def do(self, command: str, *more: str, code: int = 0) -> Any:
        done = self.home.memskill(command, "--api-base", self.server.url, *more, "--json", MEMSKILL_API_KEYS="k")
        assert done.code == code, done.err
        return done.json if code == 0 else done

    def train(self, *more: str, outer: int = 3, code: int = 0) -> Any:
        models = [f"models.{role}=openai/world-{role}" for role in ("executor", "answer", "judge", "designer")]
        models += ["designer.gate=rewards", "memory.sources=false"]  # the small world's answers read memories only
        flags = [part for text in models for part in ("--set", text)]
        shape = ["--span-mode", "turn", "--top-k", "1", "--outer-epochs", str(outer), "--inner-epochs", "4"]
        fast = ["--set", "ppo.learning_rate=0.003", "--encoder", "hashing", "--retriever", "hashing"]
        more = (*shape, "--batch-size", "3", "--set", "eval.judge=false", "--set", "eval.span_mode=turn", *fast, *more)
        return self.do("train", "--dataset", "locomo", "--run", "evo", *flags, *more, code=code)

    def stage(self, number: int) -> dict[str, Any]:
        return json.loads((self.run / f"stages/stage-{number:03d}.json").read_text())

    def asked(self, role: str) -> int:
        return sum(request.role == role for request in self.server.requests)


@contextmanager
def place_in(home: Any, context: World) -> Iterator[Place]:
    file = home.path / "world.json"
    file.write_text(json.dumps(conversations()))
    done = home.memskill("prepare", "--dataset", "locomo", "--source", str(file), "--quiet")
    assert done.code == 0, done.err
    with MockLLMServer(context) as server:
        yield Place(home, server)


def tree(folder: Path) -> dict[str, str]:
    """What lies in a run, but for the log and the bills."""
    skip = ("usage.jsonl", "memskill.log", ".lock")
    files = (f for f in folder.rglob("*") if f.is_file() and f.name not in skip)
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_harm_is_rolled_back_and_shown_to_the_designer_and_help_is_kept(home: Any) -> None:
    context = World(HARM, HELP)
    with place_in(home, context) as place:
        place.train()
        first, harmful, helpful = (place.stage(n) for n in range(3))
        assert (first["kept"], first["change"], first["parent"]) == (True, {}, None)
        assert (harmful["kept"], harmful["is_best"], harmful["parent"]) == (False, False, 0)
        assert harmful["reward"] < first["reward"]
        assert "BLUR" in json.dumps(harmful["bank"])
        # The next change is made from the best bank again, and what failed is told.
        assert helpful["parent"] == 0
        assert "BLUR" not in json.dumps(helpful["bank"])
        assert any("BLUR" in text for text in context.seen[-2:])
        new = next(skill for skill in helpful["bank"]["skills"] if skill["name"] == "allergies")
        assert (new["origin"], new["created_stage"], helpful["rationale"]) == (
            "designer",
            2,
            "add allergies: allergies are lost",
        )
        best = max((first, helpful), key=lambda stage: stage["reward"])
        assert best["is_best"]
        assert json.loads((place.run / "skill_bank.json").read_text()) == best["bank"]
        state = json.loads((place.run / "checkpoints/000012/state.json").read_text())
        assert state["window_start"] == 8, "new skills are explored from the start of their stage"
        history = home.memskill("inspect-skills", "--run", "evo", "--history", "--json").json
        assert [stage["stage"] for stage in history["stages"]] == [0, 1, 2]
        cases = [json.loads(line) for line in (place.run / "hard_cases.jsonl").read_text().splitlines()]
        assert {case["question"].split()[3] for case in cases} <= {"job", "allergy"}
        assert all(case["score"] < 0.5 and case["fails"] >= 1 for case in cases)


@pytest.mark.slow
@pytest.mark.parametrize("stage_file_is_there", [True, False])
def test_a_crash_after_the_designers_answer_charges_nothing_twice(home: Any, stage_file_is_there: bool) -> None:
    with place_in(home, World(HELP)) as place:
        place.train(outer=1)
        # Up to here as a run killed right after the designer has answered: its stage is proposed, nothing is trained.
        place.train("--resume", outer=2)
        designer, undisturbed, judged = place.asked("designer"), tree(place.run), place.stage(1)
        waiting = {**judged, "reward": None, "kept": None, "is_best": False, "checkpoint": None}
        file = place.run / "stages/stage-001.json"
        if stage_file_is_there:
            bank = {**judged["bank"], "new": ["allergies"]}
            blank = {"uses": 0, "mean_reward": 0.0, "recent_rewards": [], "usage_ema": 0.0}
            before = {skill["name"]: skill["stats"] for skill in place.stage(0)["bank"]["skills"]}
            bank["skills"] = [{**skill, "stats": before.get(skill["name"], blank)} for skill in bank["skills"]]
            file.write_text(json.dumps({**waiting, "bank": bank}))
        else:
            file.unlink()
        zero = {**place.stage(0), "is_best": True}
        (place.run / "stages/stage-000.json").write_text(json.dumps(zero))
        for number in range(5, 9):
            folder = place.run / f"checkpoints/{number:06d}"
            for part in folder.glob("*"):
                part.unlink()
        manifest = place.run / "run.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "paused"}))
        sent = len(place.server.requests)
        place.train("--resume", outer=2)
        assert place.asked("designer") == designer
        assert len(place.server.requests) == sent  # every call was answered before
        again = tree(place.run)
        names = [name for name in undisturbed if "000008" in name or "hard_cases" in name or "stage-001" in name]
        assert len(names) >= 6
        assert {name: again[name] for name in names} == {name: undisturbed[name] for name in names}


def test_a_dry_run_shows_a_diff_and_changes_nothing(home: Any) -> None:
    with place_in(home, World(HELP)) as place:
        place.train(outer=1)
        before = tree(place.run)
        shown = place.do("evolve", "--run", "evo", "--dry-run")
        assert "+## Purpose" in shown["cycles"][0]["diff"]["allergies"]
        read = home.memskill(
            "evolve", "--run", "evo", "--dry-run", "--api-base", place.server.url, MEMSKILL_API_KEYS="k"
        )
        assert "add allergies: allergies are lost" in read.out
        assert "+Keep every ALLERGY." in read.out.splitlines()
        assert "next: memskill evolve --run evo" in read.err
        assert tree(place.run) == before


def test_a_change_by_hand_waits_for_the_next_training_to_judge_it(home: Any) -> None:
    with place_in(home, World(HELP)) as place:
        place.train(outer=1)
        made = place.do("evolve", "--run", "evo")["cycles"][0]
        assert (made["stage"], made["kept"]) == (1, None)
        bank = json.loads((place.run / "skill_bank.json").read_text())
        assert (bank["stage"], bank["new"]) == (1, ["allergies"])
        refused = place.do("evolve", "--run", "evo", code=1)
        assert "has not been judged yet" in refused.err
        asked = place.asked("designer")
        place.train("--resume", outer=2)
        assert place.asked("designer") == asked
        assert place.stage(1)["reward"] is not None


@pytest.mark.slow
def test_judging_on_a_split_keeps_the_better_bank(home: Any) -> None:
    with place_in(home, World(HARM)) as place:
        place.train(outer=1)
        evaluation = place.do("eval", "--run", "evo", "--split", "val")
        before = json.loads((place.run / "stages/stage-000.json").read_text())["bank"]
        cycle = place.do("evolve", "--run", "evo", "--from-eval", evaluation["id"], "--judge-on", "val")["cycles"][0]
        assert cycle["kept"] is False
        scores = cycle["judged"]
        assert scores["after"]["f1"] <= scores["before"]["f1"]
        assert scores["before"]["f1"] == evaluation["f1"]
        bank = json.loads((place.run / "skill_bank.json").read_text())
        assert bank["skills"] == before["skills"]
        assert place.stage(1)["kept"] is False


class Contrary(World):
    """The small world with a judge who takes right answers for wrong ones, and the other way round."""

    def __call__(self, request: Request) -> str:
        if request.role != "judge":
            return super().__call__(request)
        truth, answer = (rules.part(request, tag) for tag in ("truth", "answer"))
        return json.dumps({"explanation": "so", "score": int(truth != answer)})


def test_judging_goes_by_what_the_run_is_rewarded_with(home: Any) -> None:
    with place_in(home, Contrary(HARM)) as place:
        place.train("--reward", "judge", outer=1)
        cycle = place.do("evolve", "--run", "evo", "--judge-on", "train")["cycles"][0]
        scores = cycle["judged"]
        assert scores["measure"] == "judge"
        assert scores["after"]["f1"] < scores["before"]["f1"], "by F1 it would be rolled back"
        assert scores["after"]["judge"] > scores["before"]["judge"]
        assert cycle["kept"] is True
        assert place.stage(1)["is_best"] is True


class Eager(World):
    """The small world with an executor that follows all skills it is shown, not only one."""

    def __call__(self, request: Request) -> str:
        skills, _, span = request.messages[-1]["content"].partition("<span>")
        if request.role != "executor":
            return super().__call__(request)
        who, kind, value = re.search(r"(\w+)'s (\w+) is (\w+)", span).groups()  # type: ignore[union-attr]
        known = kind == "job" or "ALLERGY" in skills
        return f"ACTION: INSERT\nMEMORY: {who} {kind} {value}" if known else "ACTION: NOOP"


def test_val_questions_judge_a_change_and_its_skill_is_measured_without_it(home: Any) -> None:
    with place_in(home, Eager(HELP)) as place:
        flags = ["--set", "designer.gate=val", "--set", "eval.num_skills=9"]
        place.train(*flags, "--top-k", "9", outer=2)
        first, helpful = place.stage(0), place.stage(1)
        assert (sum(first["held_out"].values()), sum(helpful["held_out"].values())) == (1.0, 2.0)
        assert helpful["gate"] == {
            "queries": 2,
            "difference": 0.5,
            "ci95": [0.0, 1.0],
            "kept": True,
            "champion": 0.5,
            "challenger": 1.0,
        }
        assert helpful["is_best"]
        before = tree(place.run / "stages")
        (effect,) = place.do("evolve", "--run", "evo", "--attribution", "val")["effects"]
        assert effect == {
            "skill": "allergies",
            "score": "f1",
            "queries": 2,
            "difference": 0.5,
            "ci95": [0.0, 1.0],
        }
        assert tree(place.run / "stages") == before
        refused = place.do("evolve", "--attribution", "val", "--dry-run", code=2)
        assert "cannot be combined" in refused.err


def test_what_evolve_cannot_do_is_said(home: Any) -> None:
    with place_in(home, World(HELP)) as place:
        assert "memskill train" in place.do("evolve", code=1).err
        place.train(outer=1)
        assert "its evaluations: none yet" in place.do("evolve", "--from-eval", "../../x", code=1).err
        assert "--judge-on" in place.do("evolve", "--cycles", "2", code=2).err


def test_a_run_starts_from_a_folder_of_skills(home: Any) -> None:
    with place_in(home, World(HELP)) as place:
        folder = home.path / "skills"
        folder.mkdir()
        headings = ("Description", "Purpose", "When to Use", "How to Apply", "Constraints")
        text = "\n\n".join(f"## {heading}\nKeep every ALLERGY." for heading in headings)
        (folder / "a.md").write_text(f"# Note Allergies\n\n{text}\n\nAction type: INSERT only.\n")
        place.train("--init-skills", str(folder), outer=1)
        (skill,) = json.loads((place.run / "skill_bank.json").read_text())["skills"]
        assert (skill["origin"], skill["action"]) == ("import", "insert")
        assert skill["stats"]["uses"] > 0
        refused = home.memskill("train", "--dataset", "locomo", "--run", "other", "--init-skills", "nowhere")
        assert (refused.code, "nowhere" in refused.err) == (1, True)
        assert not (home.path / "runs/other").exists()
