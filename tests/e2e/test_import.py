"""``memskill import`` as typed, and what is done with the run that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.memory.encoder_models import HASHED_DIM
from memskill_cli.testing import rules
from memskill_cli.testing.server import MockLLMServer, Request

from ..conftest import Done, Home
from ..runs.releases import content, save

HASHING = ["--encoder", "hashing", "--retriever", "hashing"]
SKILLS = ["capture_activity_details", "delete", "insert", "noop", "update"]


@dataclass
class Models:
    """The rule-made models, and what they were asked."""

    asked: list[Request] = field(default_factory=list)

    def __call__(self, request: Request) -> Any:
        self.asked.append(request)
        return rules.reply(request)


@dataclass(frozen=True)
class Imported:
    home: Home
    models: Models
    url: str
    file: Path
    done: Done

    def evaluate(self, *flags: str) -> Done:
        """An evaluation of a few questions; what was asked is in ``models``."""
        self.models.asked.clear()
        short = ["--limit", "3", "--no-judge", "--json"]
        done = self.home.memskill("eval", "--model", "openai/rules", "--api-base", self.url, *short, *flags)
        assert done.code == 0, done.err
        return done

    def shown(self) -> str:
        """What executors were shown."""
        return "\n".join(request.text for request in self.models.asked if request.role == "executor")


@pytest.fixture(scope="module")
def imported(new_home: Callable[[], Home]) -> Iterator[Imported]:
    home, models = new_home(), Models()
    file = save(home.path / "run_epoch_10.pt", content(HASHED_DIM, 16))
    with MockLLMServer(models) as server:
        done = home.memskill("import", file.name, "--run", "released", *HASHING, "--json")
        assert done.code == 0, done.err
        yield Imported(home, models, server.url, file, done)


def test_what_was_taken_over_is_said(imported: Imported) -> None:
    facts = imported.done.json
    assert (facts["run"], facts["inner_epochs"], facts["dataset"]) == ("released", 1000, "locomo")
    assert (facts["skills"], facts["new"]) == (SKILLS, ["capture_activity_details"])
    assert facts["optimizer"] is True
    assert facts["taken_over"]["ppo.gamma"] == 0.9
    assert facts["taken_over"]["designer.every"] == 2
    assert facts["not_taken_over"] == ["something_new"]
    assert "trained with the encoder Qwen/Qwen3-Embedding-0.6B; hashing is used instead" in imported.done.err
    assert "the checkpoint was trained with the model some/model; choose a model with --model" in imported.done.err
    assert "SECRET" not in imported.done.err + imported.done.out


def test_nothing_of_the_file_but_what_is_told_is_kept(imported: Imported) -> None:
    run = imported.home.path / "runs" / "released"
    names = {file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file()}
    assert names >= {
        *("run.json", "config.toml", "skill_bank.json", "stages/stage-000.json", "metrics.jsonl", "hard_cases.jsonl"),
        *(f"checkpoints/001000/{name}" for name in ("controller.safetensors", "optimizer.safetensors", "state.json")),
    }
    assert not any(b"SECRET" in file.read_bytes() for file in run.rglob("*") if file.is_file())
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_it_is_evaluated_at_once(imported: Imported) -> None:
    done = imported.evaluate("--run", "released")
    assert (done.json["run"], done.json["checkpoint"], done.json["errors"]) == ("released", "001000", {})
    assert done.json["queries"] == 3
    assert "what is said." in imported.shown()  # the bodies of the file's skills
    assert "untrained" not in done.err


def test_its_skills_are_shown(imported: Imported) -> None:
    done = imported.home.memskill("inspect-skills", "--run", "released", "--json")
    assert done.code == 0, done.err
    assert [skill["name"] for skill in done.json["skills"]] == SKILLS
    assert {skill["stats"]["uses"] for skill in done.json["skills"]} == {12}
    history = imported.home.memskill("inspect-skills", "--run", "released", "--history", "--json")
    assert "imported from run_epoch_10.pt" in history.json["stages"][0]["summary"]


def test_its_controller_with_other_skills(imported: Imported) -> None:
    own = imported.evaluate("--run", "released")
    assert "instead of the run's skills" not in own.err
    other = imported.evaluate("--run", "released", "--init-skills", "seeds")
    assert "with the 4 skills of seeds instead of the run's skills" in other.err
    assert "Save each lasting" in imported.shown()
    assert "what is said." not in imported.shown()
    assert (own.json["checkpoint"], other.json["checkpoint"]) == ("001000", "001000")
    assert own.json["id"] != other.json["id"]


def test_other_skills_without_any_run(imported: Imported) -> None:
    bank = imported.home.path / "runs" / "released" / "skill_bank.json"
    done = imported.evaluate("--runs-dir", "empty", "--init-skills", str(bank), *HASHING, "--dataset", "locomo")
    assert done.json["checkpoint"] == "untrained"
    assert "using the skills given and an untrained controller" in done.err
    assert "what is said." in imported.shown()


def test_a_training_goes_on_with_it(imported: Imported) -> None:
    """Data are prepared in this home, so the run knows what it is trained on."""
    table = content(HASHED_DIM, 16, epoch=1, completed_outer_epoch=1)
    table["config"] |= {"inner_epochs": 1, "reward_metric": "f1", "designer_freq": 1}
    file = save(imported.home.path / "short.pt", table)
    short = ["--set", "train.batch_size=1", "--set", "train.max_spans=1", "--set", "train.evolve=false"]
    server = ["--model", "openai/rules", "--api-base", imported.url]
    done = imported.home.memskill("import", file.name, "--run", "short", *HASHING, *server, *short, "--quiet")
    assert (done.code, done.err) == (0, "")
    resumed = imported.home.memskill("train", "--run", "short", "--resume", "--outer-epochs", "2", "--json")
    assert resumed.code == 0, resumed.err
    assert "inner epochs 1 to 2" in resumed.err
    run = imported.home.path / "runs" / "short"
    assert [stage["stage"] for stage in resumed.json["stages"]] == [0, 1]
    assert (run / "checkpoints" / "000002" / "checkpoint.json").is_file()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1


def test_skills_of_a_folder_take_the_place_of_the_files(imported: Imported) -> None:
    folder = imported.home.path / "skills" / "conversational_skills"
    folder.mkdir(parents=True)
    text = "# A Title\n\n## Description\nFor new facts.\n\n## Purpose\nWrite.\n\nAction type: INSERT only.\n"
    for name in ("insert", "capture_activity_details"):
        (folder / f"{name}.md").write_text(text)
    flags = ("--run", "seen", *HASHING, "--skills", str(folder))
    done = imported.home.memskill("import", imported.file.name, *flags)
    assert done.code == 0, done.err
    assert "designer.max_changes" in done.out
    assert "2 skills: capture-activity-details, insert" in done.out
    assert "next: memskill eval --run seen --model MODEL" in done.err


def test_the_dataset_of_a_plugin(imported: Imported) -> None:
    plugin = ["--plugin", str(Path(__file__).parents[2] / "examples" / "dataset_plugin" / "my_dataset.py")]
    command = ["import", imported.file.name, "--run", "own", "--dataset", "my-dataset", *HASHING]
    done = imported.home.memskill(*command, *plugin)
    assert done.code == 0, done.err
    manifest = json.loads((imported.home.path / "runs" / "own" / "run.json").read_text())
    assert (manifest["dataset"], list(manifest["plugins"])) == ("my-dataset", ["my_dataset.py"])
    assert f"next: memskill eval --run own --model MODEL {' '.join(plugin)}" in done.err


def test_mistakes_are_told_in_a_line(imported: Imported) -> None:
    file, run = "run_epoch_10.pt", ["--run", "x"]
    mistakes = {
        "run released already exists": (1, [file, "--run", "released", *HASHING]),
        "512-d embeddings of states, but encoder Qwen/Qwen3-Embedding-0.6B": (2, [file, *run]),
        "no dataset is called lokomo": (2, [file, *run, *HASHING, "--dataset", "lokomo"]),
        "none: no such file or folder": (1, [file, *run, *HASHING, "--skills", "none"]),
        "nowhere.pt: no such file": (1, ["nowhere.pt", *run]),
        "Missing option '--run'": (2, [file]),
    }
    commands = [["import", *arguments] for _, arguments in mistakes.values()]
    for done, (line, (code, _)) in zip(imported.home.together(*commands), mistakes.items(), strict=True):
        assert done.code == code, done.err
        assert line in done.err
        assert "Traceback" not in done.err
    assert not (imported.home.path / "runs" / "x" / "run.json").exists()
