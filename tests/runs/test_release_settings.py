"""Which settings of memskill the settings of a published checkpoint become."""

from __future__ import annotations

from typing import Any

import pytest

from memskill_cli.config import Config, load, setting_names
from memskill_cli.errors import CheckpointError, UsageError
from memskill_cli.runs import release_names
from memskill_cli.runs import release_settings as r

QWEN = "Qwen/Qwen3-Embedding-0.6B"


def taken(dataset: str = "locomo", hidden: int = 256, **values: Any) -> r.Taken:
    return r.take_over(values, frozenset(values), dataset, hidden)


def test_every_setting_that_is_named_exists() -> None:
    direct = {**release_names.DIRECT, **release_names.DIRECT_ALFWORLD}
    ours = {*direct.values(), *(setting for setting, _ in release_names.RENAMED.values())}
    assert ours <= set(setting_names())


def test_the_published_settings_change_nothing() -> None:
    """The values of the published training script, and the defaults of what it does not set."""
    found = taken(
        state_encoder=QWEN,
        retriever="contriever",
        mem_top_k=20,
        mem_top_k_eval=20,
        max_ops=30,
        skip_noop=False,
        inner_epochs=100,
        batch_size=4,
        session_mode="full-session",
        chunk_size=2048,
        chunk_overlap=256,
        action_top_k=3,
        ppo_epochs=2,
        new_action_bias_steps=25,
        new_action_p_min=0.3,
        stage_reward_fraction=0.25,
        designer_reflection_cycles=3,
        designer_max_changes=3,
        designer_new_skill_hint=True,
        designer_freq=1,
        reward_metric="f1",
        state_fusion="mean",
        state_fusion_tau=1.0,
        enable_designer=True,
        ema_alpha=0.1,
        vf_clip=0.0,
        clip_epsilon=0.2,
        redistribute_reward=True,
        seed=42,
    )
    paper = load(preset="paper")
    assert found.left == ()
    changed = {
        name
        for name, one in r.values_of(found.settings, found.taken).items()
        if r.values_of(paper, [name])[name] != one
    }
    assert changed <= {"eval.num_memories"}  # 20 as well, but said
    assert found.settings.models == Config().models
    assert found.settings.preset == "paper"


def test_values_that_have_other_names() -> None:
    found = taken(
        hidden=64,
        state_fusion="sim_weighted",
        reward_metric="llm_judge",
        skip_noop=True,
        enable_designer=False,
        session_mode="fixed-length",
        chunk_size=1024,
        chunk_overlap=128,
        clip_epsilon=0.1,
        vf_clip=0.1,
        retriever="Facebook/Contriever",
        mem_top_k=5,
        mem_top_k_eval=7,
    ).settings
    assert (found.memory.pooling, found.reward.kind, found.controller.include_noop) == ("softmax", "judge", False)
    assert (found.train.evolve, found.train.span_mode, found.train.chunk_size) == (False, "fixed-length", 1024)
    assert (found.ppo.clip_vloss, found.ppo.clip_coef, found.controller.hidden) == (True, 0.1, 64)
    assert (found.encoders.retrieval, found.memory.num_memories, found.eval.num_memories) == ("contriever", 5, 7)


def test_what_cannot_be_taken_over_is_named() -> None:
    found = taken(
        ema_alpha=0.2,
        redistribute_reward=False,
        vf_clip=0.5,
        clip_epsilon=0.2,
        retriever="bm25",
        state_fusion="max",
        gamma=7.0,
        chunk_size=100,
        chunk_overlap=100,
        session_mode="fixed-length",
        something_new=1,
        device="cuda",
        ppo_epochs="many",
        designer_num_clusters=[5],
    )
    assert found.left == (
        *("chunk_overlap", "chunk_size", "ema_alpha", "gamma", "ppo_epochs", "redistribute_reward", "retriever"),
        *("something_new", "state_fusion", "vf_clip"),
    )
    paper = load(preset="paper")
    assert found.settings.ppo.gamma == paper.ppo.gamma
    assert found.settings.train.chunk_size == paper.train.chunk_size


def test_alfworld() -> None:
    values = {
        "alfworld_pair_a_min": 10,
        "alfworld_pair_a_max": 20,
        "alfworld_pair_b_size": 0,
        "batch_size": 6,
        "alfworld_pair_same_type_prob": 0.8,
        "alfworld_pair_max_steps": 30,
        "alfworld_pair_chunk_size": 1000,
        "alfworld_eval_query_source": "first_observation",
        "alfworld_include_inventory": 0,
        "alfworld_action_max_tokens": 16,
        "chunk_size": 9,
    }
    found = taken("alfworld", **values)
    played = found.settings.env
    assert (played.trajectories_min, played.trajectories_max, played.tasks_min, played.tasks_max) == (10, 20, 6, 6)
    assert (played.same_type, played.steps, played.retrieval_query, played.inventory) == (0.8, 30, "observation", False)
    assert (found.settings.train.chunk_size, found.settings.models.answer_max_tokens) == (1000, 16)
    assert found.left == ()
    assert taken(**values).settings.env == load(preset="paper").env  # another benchmark leaves it alone


def test_other_benchmarks() -> None:
    assert r.dataset_of({"dataset": "hotpotqa"}) == "hotpotqa"
    assert r.dataset_of({"dataset": "else"}) == r.dataset_of({}) == "locomo"
    found = taken("hotpotqa", chunk_size=800, chunk_overlap=80).settings
    assert (found.train.span_mode, found.train.chunk_size, found.dataset) == ("fixed-length", 800, "hotpotqa")


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        (QWEN, QWEN),
        ("qwen/qwen3-embedding-0.6b", QWEN),
        ("sentence-transformers/all-MiniLM-L6-v2", "minilm"),
        ("sentence-transformers/all-mpnet-base-v2", "sentence-transformers/all-mpnet-base-v2"),
    ],
)
def test_encoders_of_unit_vectors(name: str, spec: str) -> None:
    assert r.state_encoder({"state_encoder": name, "op_encoder": name.upper()}) == spec
    assert r.skill_encoder({"state_encoder": name, "op_encoder": name.upper()}) == ""


@pytest.mark.parametrize(
    "name",
    [
        "allenai/longformer-base-4096",
        "facebook/contriever",
        "sentence-transformers/paraphrase-MiniLM-L6-v2",
        "all-MiniLM-L6-v2",
    ],
)
def test_encoders_of_other_vectors_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="not of unit length") as failure:
        r.state_encoder({"state_encoder": name})
    assert "--encoder" in failure.value.hint
    with pytest.raises(CheckpointError, match="the encoder of skills") as failure:
        r.skill_encoder({"state_encoder": QWEN, "op_encoder": name})
    assert "--set encoders.skill=" in failure.value.hint


def test_two_encoders() -> None:
    values = {"state_encoder": QWEN, "op_encoder": "sentence-transformers/all-MiniLM-L6-v2"}
    assert (r.state_encoder(values), r.skill_encoder(values)) == (QWEN, "minilm")
    assert r.skill_encoder({}) == ""
    with pytest.raises(CheckpointError, match="does not say"):
        r.state_encoder({})


def test_widths() -> None:
    r.check_width(QWEN, 1024, "states")
    r.check_width("minilm@bfloat16", 384, "states")
    r.check_width("anything/else", 5, "states")
    with pytest.raises(UsageError, match="needs 512-d embeddings of skills, but encoder minilm gives 384-d ones"):
        r.check_width("minilm", 512, "skills")
