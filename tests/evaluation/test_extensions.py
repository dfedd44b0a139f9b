"""The name of an evaluation with plug-ins depends on settings that are not declared irrelevant, and on versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from memskill_cli.config import Config, load, setting_names, to_dict
from memskill_cli.config.extension_points import ENCODERS, RETRIEVERS
from memskill_cli.evaluation import methods
from memskill_cli.evaluation.extensions import NEVER_COUNTED, OF_CALLS, versions
from memskill_cli.evaluation.methods.base import Method, MethodMemory
from memskill_cli.evaluation.policy import EvaluatedPolicy
from memskill_cli.evaluation.spec import EvalSpec, evaluation_id, settings_digest
from memskill_cli.utils import registry

TASK = EvalSpec("locomo", "test", "foreign", "data")


class Foreign(Method):
    """A method of a plug-in that declares no irrelevant settings."""

    async def build_memory(self, trace, spans, advance) -> MethodMemory:  # type: ignore[no-untyped-def]
        raise NotImplementedError


class Declared(Foreign):
    irrelevant_settings: ClassVar[frozenset[str]] = frozenset({"ppo.gamma", "memory.retriever", "encoders.state"})


@pytest.fixture(autouse=True)
def _foreign() -> Iterator[None]:
    methods.METHODS.register("foreign", Foreign)
    methods.METHODS.register("declared", Declared)
    yield
    methods.METHODS.unregister("foreign")
    methods.METHODS.unregister("declared")


def other(settings: Config, name: str) -> Config:
    """``settings`` with another value for one setting of any type."""
    section, _, inner = name.partition(".")
    table = to_dict(settings)[section]
    value = table[inner] if inner else table
    new = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}-other"
    if not inner:
        return replace(settings, **{section: new})
    return replace(settings, **{section: replace(getattr(settings, section), **{inner: new})})


def counted(method: str) -> set[str]:
    before = settings_digest(load(), method)
    names = [name for name in setting_names() if name != "dataset"]
    return {name for name in names if settings_digest(other(load(), name), method) != before}


def test_of_a_foreign_method_that_declares_nothing_every_setting_counts() -> None:
    """A new setting counts automatically. The settings that do not count change no score of any method."""
    free = {name for name in setting_names() if name.partition(".")[0] in NEVER_COUNTED} | OF_CALLS
    of_processes = {"env.workers", "env.step_timeout"}
    assert set(setting_names()) - counted("foreign") - {"dataset"} <= free | of_processes
    assert {"train.chunk_size", "ppo.gamma", "models.designer", "memory.retriever"} <= counted("foreign")


def test_what_a_foreign_method_declares_does_not_count() -> None:
    assert counted("foreign") - counted("declared") == Declared.irrelevant_settings


def test_a_changed_file_is_another_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    text = (
        "from memskill_cli.evaluation.methods import register_method\n"
        "from memskill_cli.evaluation.methods.base import Method\n"
        "@register_method('of-a-file')\n"
        "class OfAFile(Method):\n"
        "    async def build_memory(self, trace, spans, advance): ...\n"
    )
    for comment in ("", "", "# another version\n"):
        monkeypatch.setattr(registry, "_loaded", {})
        file = tmp_path / "of_a_file.py"
        file.write_text(text + comment)
        registry.load_plugin(file)
        names.append(evaluation_id(replace(TASK, method="of-a-file"), load(), EvaluatedPolicy.nothing()))
        methods.METHODS.unregister("of-a-file")
    assert names[0] == names[1] != names[2]


def test_versions_are_those_of_the_parts_that_a_score_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    RETRIEVERS.register("their-retriever", lambda bank, encoders, top_k: None)
    ENCODERS.register("their-encoder", lambda: None)
    try:
        sets = ["memory.retriever=their-retriever", "encoders.state=their-encoder", "encoders.retrieval=their-encoder"]
        theirs = load(sets=sets)
        found = {method: set(versions("locomo", theirs, method)) for method in ("rag", "foreign", "declared", "mem0")}
        assert found == {
            "rag": {"retriever", "retrieval encoder"},
            "foreign": {"method", "retriever", "state encoder", "retrieval encoder"},
            "declared": {"method", "retrieval encoder"},
            "mem0": {"retrieval encoder"},
        }
    finally:
        RETRIEVERS.unregister("their-retriever")
        ENCODERS.unregister("their-encoder")


@pytest.mark.parametrize("method", ["memskill", "rag", "no-memory", "mem0"])
def test_what_is_built_in_has_no_versions(method: str) -> None:
    """The names of its evaluations have not changed."""
    assert versions("locomo", load(), method) == {}
