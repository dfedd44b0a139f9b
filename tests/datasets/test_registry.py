"""Datasets by name, and what a dataset is that says no more than it must."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memskill_cli.agent.prompts import template
from memskill_cli.config import Config, load
from memskill_cli.datasets.base import ABSTENTION, Dataset, PrepareOptions, ReaderCallbacks, SourceFile
from memskill_cli.datasets.paper import PaperResults
from memskill_cli.datasets.prepare import prepare
from memskill_cli.datasets.prepared import load_split
from memskill_cli.datasets.registry import DATASETS, find, get, register_dataset
from memskill_cli.errors import DataError, PluginError, UsageError
from memskill_cli.evaluation import kinds as evaluation_kinds
from memskill_cli.rollout import kinds as rollout_kinds
from memskill_cli.training.episode_sampler import SAMPLERS
from memskill_cli.types import Query, Session, Trace, Turn

BUILTIN = ("locomo", "longmemeval", "hotpotqa", "alfworld")


class Small(Dataset):
    """Only what every dataset must say."""

    name = "small"

    def read(self, part: SourceFile, watch: ReaderCallbacks) -> Iterator[Trace]:
        for split in ("train", "test"):
            query = Query(f"{split}-q", split, "place", "Where?", ("Leeds",))
            yield Trace(split, self.name, split, (Session("s", "", (Turn("me", "I live in Leeds."),)),), (query,))


@pytest.fixture
def small() -> Iterator[type[Small]]:
    register_dataset(Small)
    yield Small
    DATASETS.unregister("small")


def test_ours_are_instances_under_their_names() -> None:
    for name in BUILTIN:
        assert get(name).name == name
        assert get(name) is get(name)
    assert DATASETS.names()[:4] == list(BUILTIN)


def test_a_class_that_is_registered_is_found_as_one_instance(small: type[Small]) -> None:
    assert isinstance(get("small"), Small)
    assert get("small") is get("small")
    assert "small" in DATASETS.names()


def test_an_instance_may_be_registered_too() -> None:
    made = register_dataset(Small())
    try:
        assert get("small") is made
    finally:
        DATASETS.unregister("small")


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (object(), "object is not a Dataset"),
        (int, "int is not a Dataset"),
        (type("Nameless", (Small,), {"name": ""}), "Nameless has no name"),
        (type("Double", (Small,), {"name": "locomo"}), "there is already a dataset called locomo"),
    ],
)
def test_what_cannot_be_registered(part: object, told: str) -> None:
    with pytest.raises(PluginError, match=told):
        register_dataset(part)  # type: ignore[type-var]


def test_an_unknown_name_is_an_error_here_and_nothing_in_a_report() -> None:
    with pytest.raises(UsageError, match="no dataset is called smal; there are locomo"):
        get("smal")
    assert find("smal") is None
    assert find("locomo") is get("locomo")


def test_defaults_are_those_of_a_question_answering_dataset(small: type[Small]) -> None:
    dataset, query = get("small"), Query("q", "t", "place", "Where?", ("Leeds", "in Leeds"))
    assert (dataset.kind, dataset.trains, dataset.default_split, dataset.prompt_style) == (
        "qa", True, "test", "conversational"
    )  # fmt: skip
    assert dataset.score(query, "in Leeds") == 1.0
    assert 0 < dataset.score(query, "somewhere in Leeds") < 1
    assert dataset.gold_answers(query) == query.gold_answers
    assert dataset.scored_text(" as it is ") == " as it is "
    assert (dataset.judge_prompt("place"), dataset.judge_prompt(ABSTENTION)) == ("", "judge_abstention")
    assert not dataset.has_abstention
    assert dataset.paper_results == PaperResults()


def test_its_settings_are_what_a_command_starts_from(small: type[Small], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Small, "settings", {**Small.settings, "eval.num_skills": 3})
    monkeypatch.setattr(Small, "presets", {"demo": {"eval.num_skills": 2}})
    plain = load(overrides={"dataset": "small"})
    assert (plain.eval.num_skills, plain.models.answer_max_tokens) == (3, 128)
    assert load(preset="demo", overrides={"dataset": "small"}).eval.num_skills == 2
    other = load(base=load(overrides={"dataset": "longmemeval"}), overrides={"dataset": "small"})
    assert (other.eval.num_skills, other.models.answer_max_tokens) == (3, 128), "another dataset takes its own values"
    assert load(preset="paper", base=other, overrides={"eval.num_skills": 9}).eval.num_skills == 9
    assert load(preset="paper", base=load(sets=["eval.num_skills=9"], base=other)).eval.num_skills == 3


def test_an_unknown_dataset_has_no_settings_of_its_own() -> None:
    assert load(overrides={"dataset": "nobody"}) == Config(dataset="nobody")


def test_it_is_prepared_from_one_file(small: type[Small], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "small.txt"
    file.write_text("x")
    with pytest.raises(DataError, match="small has no official file") as failure:
        get("small").parts(None, PrepareOptions())
    assert failure.value.hint == "memskill prepare --dataset small --source FILE"
    with pytest.raises(UsageError, match="small is always prepared as a whole, without --split test"):
        get("small").parts(file, PrepareOptions(("test",)))
    monkeypatch.setattr(Small, "official", file)
    prepare("small", data_dir=tmp_path / "data")
    assert [trace.trace_id for trace in load_split("small", tmp_path / "data", "test")] == ["test"]
    (part,) = get("small").parts("https://example.org/a/small.json", PrepareOptions())
    assert (part.url, part.file_name, part.path) == ("https://example.org/a/small.json", "small.json", None)


def test_every_dataset_has_a_kind_that_all_parts_know() -> None:
    known = {get(name).kind for name in BUILTIN}
    assert known == {"qa", "env"} == set(rollout_kinds.KINDS) == set(evaluation_kinds.KINDS) == set(SAMPLERS)


def test_a_prompt_may_be_a_text_in_place_of_a_template() -> None:
    assert template("answer") != "answer"
    assert template(" Answer in French. ") == "Answer in French."
