"""Tests build clients, keys, ledgers and contexts with tests/factories.py, so a changed constructor is one change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memskill_cli.config import Config, ModelsConfig
from memskill_cli.memory.encoder_pair import EncoderPair

from .factories import models_config, rollout_context

ROOT = Path(__file__).parents[1]
BY_HAND = re.compile(r"\b(LLMClient|KeyRing\.collect|Ledger|RolloutContext)\(")
ALLOWED = {
    "tests/factories.py",
    "tests/llm/test_keys.py",  # what KeyRing.collect does
    "tests/llm/test_ledger.py",  # what a Ledger does
}


def test_only_the_factories_call_these_constructors() -> None:
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    found = {str(file.relative_to(ROOT)) for file in files if BY_HAND.search(file.read_text("utf-8"))}
    assert found - {"tests/test_factories.py"} == ALLOWED


def test_models_of_a_test_are_called_once_and_those_of_settings_as_set() -> None:
    made = models_config("http://server/v1", timeout=5.0)
    assert (made.executor, made.judge, made.retries, made.timeout) == ("m", "m", 0, 5.0)
    base = ModelsConfig(executor="a", answer="b", judge="c", designer="d", retries=3)
    kept = models_config("http://server/v1", base=base)
    assert (kept.executor, kept.designer, kept.retries, kept.api_base) == ("a", "d", 3, "http://server/v1")
    assert models_config("", "z", base).answer == "z"


def test_a_context_has_the_settings_given() -> None:
    config = Config(dataset="hotpotqa")
    encoder: object = object()
    context = rollout_context(None, encoder, config)  # type: ignore[arg-type]
    assert (context.dataset, context.memory) == ("hotpotqa", config.memory)
    assert context.encoders == EncoderPair(encoder, encoder)  # type: ignore[arg-type]
    assert rollout_context(None, context.encoders, config, dataset="locomo").dataset == "locomo"
    with pytest.raises(TypeError):
        rollout_context(None, encoder, config, no_such_field=1)  # type: ignore[arg-type]
