"""The expected cost: as many calls as a real training and a real evaluation make."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from memskill_cli.app.estimate import TraceSize, estimate_evaluation, estimate_training
from memskill_cli.config import Config, load
from memskill_cli.config.settings import ModelsConfig
from memskill_cli.llm.prices import token_prices


def size(sessions: int = 4, tokens: float = 100, turns: int = 6, questions: int = 4) -> TraceSize:
    return TraceSize([tokens] * sessions, [turns] * sessions, {"fact": questions} if questions else {})


def settings(**values: object) -> Config:
    return load(overrides={"dataset": "locomo", "models.executor": "openai/gpt-4o-mini", **values})


def calls(config: Config, train: list[TraceSize], val: list[TraceSize] | None = None) -> dict[str, float]:
    return {role: count for role, count in estimate_training(config, train, val or []).calls.items() if count}


SHORT = {"train.outer_epochs": 2, "train.inner_epochs": 3, "train.batch_size": 4, "train.evolve": False}


def test_every_span_is_an_executor_call_and_every_question_an_answer() -> None:
    assert calls(settings(**SHORT), [size()]) == {"executor": 24 * 4, "answer": 24 * 4}
    assert calls(settings(**SHORT, **{"reward.query_ratio": 0.5}), [size()]) == {"executor": 96, "answer": 48}
    assert calls(settings(**SHORT, **{"reward.kind": "judge"}), [size()])["judge"] == 96
    assert calls(settings(**SHORT), [size(sessions=2), size(sessions=6)])["executor"] == 24 * 4, "as an average trace"
    assert calls(settings(**SHORT, **{"train.max_spans": 2}), [size()])["executor"] == 48
    assert calls(settings(**SHORT), []) == {}


@pytest.mark.parametrize(
    ("mode", "tokens", "spans"),
    [
        ("turn", 10, 24),
        ("turn-pair", 10, 12),
        ("full-session", 9999, 4),
        ("fixed-length", 512, 4),
        ("fixed-length", 961, 12),
    ],
)
def test_spans_by_mode(mode: str, tokens: float, spans: int) -> None:
    found = estimate_training(settings(**SHORT, **{"train.span_mode": mode}), [size(tokens=tokens)], [])
    assert found.spans == 24 * spans


def test_the_designer_and_its_gate() -> None:
    how = {**SHORT, "train.evolve": True, "designer.gate_queries": 6}
    plain = calls(settings(**how), [size()])
    assert plain == {"executor": 96, "answer": 96, "designer": 2 * (3 + 1)}
    gated = calls(settings(**how), [size()], [size(), size()])
    assert gated["executor"] == 96 + 3 * 8, "the first bank and two changes, on two traces of four spans"
    assert gated["answer"] == 96 + 3 * 6


def test_an_evaluation_asks_and_judges_each_question_and_skips_traces_without() -> None:
    found = estimate_evaluation(settings(), [size(), size(questions=0)])
    assert found.calls == {"executor": 4, "answer": 4, "judge": 4, "designer": 0}
    assert not estimate_evaluation(settings(**{"eval.judge": False}), [size()]).calls["judge"]


def test_prices() -> None:
    prices = token_prices("openai/gpt-4o-mini", ModelsConfig())
    assert prices is not None
    assert 0 < prices[0] < prices[1] < 1e-4
    assert token_prices("openai/no-such-model", ModelsConfig()) is None
    config = settings(**{f"models.{role}": "openai/gpt-4o-mini" for role in ("answer", "judge", "designer")})
    found = estimate_evaluation(config, [size()]).to_dict(config)
    assert found["usd"] == pytest.approx(
        found["prompt_tokens"] * prices[0] + found["completion_tokens"] * prices[1], abs=1e-3
    )
    unknown = dataclasses.replace(config, models=dataclasses.replace(config.models, judge="openai/no-such-model"))
    assert estimate_evaluation(unknown, [size()]).to_dict(unknown)["usd"] is None
    embedded = load(overrides={"dataset": "locomo"})
    assert estimate_evaluation(embedded, [size()]).to_dict(embedded)["usd"] == 0


def test_numbers_are_whole_and_by_role() -> None:
    table = estimate_training(settings(**SHORT), [size(sessions=1), size(sessions=2), size(sessions=2)], []).to_dict(
        settings()
    )
    assert table["calls"] == sum(table["calls_by_role"].values())
    assert Counter(map(type, table["calls_by_role"].values())) == {int: 2}
    embedded = load(overrides={"dataset": "locomo"})
    slow = estimate_training(settings(**SHORT), [size(sessions=1)], []).to_dict(embedded)
    assert slow["minutes"] > 10 * slow["calls"] * 2 / 16 / 60, "one call at a time, prompts at 80 tokens a second"
    models = {f"models.{role}": "openai/gpt-4o-mini" for role in ("answer", "judge", "designer")}
    served = settings(**models)
    fast = estimate_training(settings(**SHORT), [size(sessions=1)], []).to_dict(served)
    assert fast["minutes"] == pytest.approx(fast["calls"] * 2 / 16 / 60, abs=0.05)
