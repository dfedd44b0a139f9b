"""Settings: precedence, checks, and the nearest name for a typo."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from memskill_cli import config
from memskill_cli.config.settings import RANGES, Config
from memskill_cli.errors import UsageError


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('seed = 3\n[train]\ntop_k = 4\nbatch_size = 9\n[models]\njudge = "openai/x"\n')
    found = config.load(
        preset="demo", file=file, overrides={"train.num_skills": 6, "seed": None}, sets=["ppo.gamma=0.5"]
    )
    assert (found.train.max_spans, found.train.batch_size, found.train.num_skills) == (2, 9, 6)
    assert (found.seed, found.models.judge, found.ppo.gamma) == (3, "openai/x", 0.5)


PUBLISHED = {
    "models.executor": "openai/meta-llama/Llama-3.3-70B-Instruct",
    "models.answer": "openai/meta-llama/Llama-3.3-70B-Instruct",
    "models.judge": "openai/openai/gpt-oss-120b",
    "models.designer": "openai/meta-llama/Llama-3.3-70B-Instruct",
    "encoders.state": "Qwen/Qwen3-Embedding-0.6B",
    "encoders.retrieval": "contriever",
    "memory.num_memories": 20,
    "controller.hidden": 256,
    "controller.new_skill_min_prob": 0.3,
    "controller.new_skill_epochs": 25,
    "controller.include_noop": True,
    "memory.pooling": "mean",
    "memory.tau": 1.0,
    "models.executor_max_tokens": 2048,
    "models.judge_max_tokens": 1024,
    "models.temperature": 0.0,
    "ppo.clip_vloss": False,
    "designer.every": 1,
    "designer.capacity": 30,
    "designer.refine_only": False,
    "designer.prefer_new_skills": True,
    "designer.judged_share": 0.25,
    "eval.judge_prompt": "general",
    "reward.kind": "f1",
    "reward.final_share": 0.6,
    "reward.decay": 0.9,
    "reward.process_reward_scale": 0.1,
    "reward.process_penalty_scale": 0.05,
    "reward.query_ratio": 1.0,
    "ppo.gamma": 0.99,
    "ppo.gae_lambda": 0.95,
    "ppo.clip_coef": 0.2,
    "ppo.vf_coef": 0.5,
    "ppo.ent_coef": 0.01,
    "ppo.learning_rate": 1e-4,
    "ppo.minibatch_size": 32,
    "ppo.update_epochs": 2,
    "ppo.max_grad_norm": 0.5,
    "ppo.target_kl": 0.02,
    "designer.max_changes": 3,
    "designer.reflection_rounds": 3,
    "designer.max_attempts": 3,
    "designer.max_cycles": 20,
    "designer.patience": 5,
    "designer.f1_threshold": 0.5,
    "designer.case_max_age": 100,
    "designer.case_capacity": 2000,
    "designer.clusters": 5,
    "designer.per_cluster": 3,
    "designer.max_cases": 15,
    "designer.memories_per_case": 20,
    "train.outer_epochs": 10,
    "train.inner_epochs": 100,
    "train.batch_size": 4,
    "train.span_mode": "full-session",
    "train.num_skills": 3,
    "train.evolve": True,
    "eval.span_mode": "fixed-length",
    "eval.chunk_size": 512,
    "eval.chunk_overlap": 64,
    "eval.num_skills": 7,
    "eval.judge": True,
    "models.answer_max_tokens": 32,
}
"""Sections 3 to 8 of the method, on LoCoMo."""
ELSEWHERE = {
    "longmemeval": {"eval.num_skills": 5, "models.answer_max_tokens": 512},
    "hotpotqa": {"eval.num_skills": 7, "models.answer_max_tokens": 512},
    "alfworld": {
        "eval.num_skills": 5,
        "models.answer_max_tokens": 32,
        "train.chunk_size": 2048,
        "env.memory": "all",
        "env.inventory": True,
        "train.batch_size": 16,
        "env.trajectories_min": 40,
        "env.trajectories_max": 60,
        "env.tasks_min": 5,
        "env.tasks_max": 5,
        "env.same_type": 1.0,
        "env.steps": 50,
    },
}
"""What was published differently for the other benchmarks."""
NOT_LIKE_THE_PAPER = [
    f"{name}={value}"
    for name, value in {
        "memory.num_memories": 3,
        "reward.decay": 0.5,
        "ppo.clip_coef": 0.4,
        "designer.max_cases": 2,
        "train.num_skills": 9,
        "eval.num_skills": 1,
        "models.answer_max_tokens": 7,
        "eval.span_mode": "turn",
        "eval.judge": "no",
        "train.max_spans": 2,
    }.items()
]


def values(found: config.Config, names: Iterable[str]) -> dict[str, Any]:
    return {name: reduce(getattr, name.split("."), found) for name in names}


@pytest.mark.parametrize("dataset", ["locomo", "longmemeval", "hotpotqa", "alfworld"])
def test_the_paper_preset_has_the_published_settings(dataset: str) -> None:
    expected = {**PUBLISHED, **ELSEWHERE.get(dataset, {})}
    paper = config.load(preset="paper", overrides={"dataset": dataset})
    assert values(paper, expected) == expected
    # The same for a run that was trained with other settings.
    other = config.load(sets=NOT_LIKE_THE_PAPER)
    assert values(config.load(preset="paper", overrides={"dataset": dataset}, base=other), expected) == expected
    assert other.eval.num_skills == 1


def answering(found: config.Config) -> tuple[int, int]:
    return found.eval.num_skills, found.models.answer_max_tokens


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("locomo", (7, 32)), ("longmemeval", (5, 512)), ("hotpotqa", (7, 512)), ("alfworld", (5, 32))],
)
def test_each_benchmark_has_its_own_defaults_below_everything_else(
    tmp_path: Path, dataset: str, expected: tuple[int, int]
) -> None:
    asked = {"dataset": dataset}
    assert answering(config.load(overrides=asked)) == expected
    assert answering(config.load(preset="demo", overrides=asked)) == (1, expected[1])
    file = tmp_path / "my.toml"
    file.write_text(f'dataset = "{dataset}"\n[eval]\ntop_k = 2\n')
    assert answering(config.load(file=file)) == (2, expected[1])
    assert answering(config.load(overrides=asked, sets=["models.answer_max_tokens=9"])) == (expected[0], 9)


def test_a_run_evaluated_on_another_benchmark_takes_its_values_unless_told_otherwise() -> None:
    run = config.load(
        overrides={"dataset": "locomo"}, sets=["eval.num_skills=3", "eval.chunk_size=100", "memory.num_memories=9"]
    )
    assert answering(config.load(base=run)) == (3, 32)
    assert answering(config.load(base=run, overrides={"dataset": "locomo"})) == (3, 32)
    moved = config.load(base=run, overrides={"dataset": "longmemeval"})
    assert answering(moved) == (5, 512)
    assert (moved.eval.chunk_size, moved.memory.num_memories, moved.dataset) == (512, 9, "longmemeval")
    assert answering(config.load(base=run, overrides={"dataset": "longmemeval", "eval.num_skills": 4})) == (4, 512)
    assert answering(config.load(base=moved, overrides={"dataset": "locomo"})) == (7, 32)
    # A preset given in the same command takes precedence over them.
    assert answering(config.load(base=run, preset="demo", overrides={"dataset": "hotpotqa"})) == (1, 512)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[train]\nnum_skillz = 4\n", "did you mean train.num_skills?"),
        ("[trian]\nnum_skills = 4\n", "did you mean train.num_skills?"),
        ('[train]\nspan_mode = "full-sesion"\n', "did you mean full-session?"),
        ('[train]\ntop_k = "many"\n', "is not a whole number"),
        ("[train]\ntop_k = true\n", "is not a whole number"),
        ("[train]\ntop_k = 0\n", "must be above 0"),
        ("[train\n", "not TOML"),
        ("[eval]\nchunk_overlap = 512\n", "must be smaller than chunk size"),
        ("[reward]\nquery_ratio = 0.0\n", "must be above 0"),
    ],
)
def test_a_wrong_config_file_is_refused_with_its_reason(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "my.toml"
    file.write_text(content)
    with pytest.raises(UsageError) as failure:
        config.load(file=file)
    assert says in f"{failure.value.message} {failure.value.hint}"


def test_every_setting_survives_toml(tmp_path: Path) -> None:
    found = config.load(preset="paper", sets=["limits.max_cost=1.5", "train.evolve=no"])
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml(found))
    assert config.from_dict(config.read_toml(file)) == found


def test_the_digest_depends_on_values_alone() -> None:
    assert config.digest({"a": 1, "b": [2]}) == config.digest({"b": [2], "a": 1}) != config.digest({"a": 1, "b": [3]})


SECRET = "hunter2pass"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sets": [f"models.api_base=https://user:{SECRET}@host/v1"]}, "models.api_base must not contain"),
        ({"overrides": {"models.api_base": f"https://{SECRET}@host/v1"}}, "models.api_base must not contain"),
        ({"overrides": {"models.api_base": f"https://host/v1?key={SECRET}"}}, "models.api_base must not contain"),
        ({"overrides": {"models.api_base": f"https://host?a=1&subscription-key={SECRET}"}}, "models.api_base must not"),
        ({"sets": [f"memory.server=http://user:{SECRET}@host:8000"]}, "memory.server must not contain"),
        ({"sets": [f"encoders.state=https://user:{SECRET}@host/model"]}, "encoders.state must not contain"),
        ({"sets": [f"models.api_key={SECRET}"]}, "models.api_key is not a setting"),
        ({"sets": [f"api_keys={SECRET}"]}, "api_keys is not a setting"),
        ({"sets": [f"models.token={SECRET}"]}, "models.token is not a setting"),
        ({"sets": [f"api_key {SECRET}"]}, "expected section.key=value"),
        ({"file": f'[models]\napi_key = "{SECRET}"'}, "models.api_key is not a setting"),
        ({"file": f'[models.keys]\nopenai = "{SECRET}"'}, "models.keys is not a setting"),
        ({"file": f'api_key = "{SECRET}"'}, "api_key is not a setting"),
        ({"file": f'[models]\napi_base = "https://u:{SECRET}@h/v1"'}, "models.api_base must not contain"),
        ({"file": f"[models]\napi_key = {SECRET}"}, "not TOML"),
    ],
)
def test_a_secret_is_no_setting(given: dict[str, Any], says: str, tmp_path: Path) -> None:
    """Settings are stored with a run, so a secret in them is refused, and the message does not show it."""
    if "file" in given:
        (tmp_path / "mine.toml").write_text(given["file"])
        given = {"file": tmp_path / "mine.toml"}
    with pytest.raises(UsageError) as refused:
        config.load(**given)
    assert says in refused.value.message
    assert SECRET not in refused.value.message + refused.value.hint


def test_an_address_with_harmless_parameters_is_a_setting() -> None:
    base = "https://host.openai.azure.com/openai?api-version=2024-10-21"
    assert config.load(overrides={"models.api_base": base}).models.api_base == base
    with pytest.raises(UsageError, match=r"no setting is called models\.answer_max_token") as refused:
        config.load(sets=["models.answer_max_token=3"])
    assert "answer_max_tokens" in refused.value.hint, "a typo, no key"


def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        config.load(file=tmp_path)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("reward.final_share=1.7", "from 0 to 1"),
        ("reward.final_share=-0.1", "from 0 to 1"),
        ("reward.decay=0", "above 0 and at most 1"),
        ("reward.query_ratio=1.01", "above 0 and at most 1"),
        ("designer.judged_share=0", "above 0 and at most 1"),
        ("controller.new_skill_min_prob=1", "between 0 and 1"),
        ("ppo.gamma=1.01", "from 0 to 1"),
        ("ppo.clip_coef=0", "above 0"),
        ("ppo.minibatch_size=-1", "0 or above"),
        ("ppo.learning_rate=nan", "a finite number"),
        ("memory.tau=inf", "a finite number"),
        ("memory.parallel_spans=0", "above 0"),
        ("designer.every=0", "above 0"),
        ("eval.num_memories=-1", "0 or above"),
        ("env.top_p=0", "above 0 and at most 1"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(setting: str, told: str) -> None:
    with pytest.raises(UsageError) as failure:
        config.load(sets=[setting])
    assert failure.value.message.startswith(f"{setting.partition('=')[0]} must be {told}")


def test_the_ends_of_a_range_are_allowed() -> None:
    ends = ("reward.final_share=0", "reward.final_share=1", "ppo.minibatch_size=0", "ppo.target_kl=0", "ppo.gamma=1")
    assert all(config.load(sets=[setting]) for setting in ends)


def test_an_evaluation_has_its_own_number_of_memories() -> None:
    both = config.load(sets=["memory.num_memories=9", "eval.num_memories=4"])
    assert config.for_evaluation(both).memory.num_memories == 4
    assert both.memory.num_memories == 9, "training keeps its own"
    one = config.load(sets=["memory.num_memories=4"])
    assert config.for_evaluation(one) == config.for_evaluation(both), "asked for in either way, it is one evaluation"
    assert config.for_evaluation(one, judge=False).eval.judge is False


def test_every_setting_that_is_a_number_has_a_range_with_its_default() -> None:
    defaults = config.to_dict(Config())
    flat = {name: value for name, value in defaults.items() if not isinstance(value, dict)}
    flat |= {f"{part}.{name}": v for part, t in defaults.items() if isinstance(t, dict) for name, v in t.items()}
    numbers = {name: v for name, v in flat.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    assert numbers.keys() == RANGES.keys()
    assert all(value in RANGES[name] for name, value in numbers.items())


@pytest.mark.parametrize("value", ["nan", "-inf", "1e308", "-1", "9" * 400])
@pytest.mark.parametrize("name", sorted(RANGES))
def test_no_number_gets_past_its_range(name: str, value: str) -> None:
    with pytest.raises(UsageError) as failure:
        config.load(sets=[f"{name}={value}"])
    assert name in failure.value.message or "chunk" in failure.value.message


def test_a_billion_episodes_in_a_batch_are_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.batch_size must be above 0 and at most 10,000, not 1000000000"):
        config.load(sets=["train.batch_size=1000000000"])


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "[train]\nnum_skills = " + "9" * 5000])
def test_a_settings_file_that_no_parser_likes_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "wild.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"wild\.toml: not TOML"):
        config.load(file=file)
