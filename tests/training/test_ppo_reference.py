"""``ppo.update`` against the simple PPO of ``reference_ppo``, on random batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from memskill_cli.agent.controller import Controller
from memskill_cli.config import PPOConfig
from memskill_cli.training import ppo

from . import reference_ppo as reference

METRICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac", "explained_variance")
DIM, HIDDEN = 3, 5
CONFIG = PPOConfig(learning_rate=1e-3, minibatch_size=4, update_epochs=3, target_kl=0)


@dataclass(frozen=True)
class Case:
    """A controller, and a batch that was collected with older weights, in float64."""

    weights: reference.Weights
    skills: torch.Tensor
    new: list[bool]
    episodes: list[list[reference.Step]]


def case_of(
    seed: int, lengths: Sequence[int], *, skills: int = 5, k: int = 3, new: int = 2, moved: float = 0.3
) -> Case:
    """``moved``: how much the weights have changed since the batch was collected. ``new``: the number of new skills,
    which had a shift at half of the steps. The chosen skills are drawn with the older weights.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    like = Controller(2 * DIM, DIM, HIDDEN).double().state_dict()
    weights = {name: 2 * weight for name, weight in like.items()}
    old = {name: weight + moved * torch.randn_like(weight) for name, weight in weights.items()}
    embeddings = torch.from_numpy(rng.normal(size=(skills, DIM)))
    is_new = [bool(i < new) for i in rng.permutation(skills)]  # torch 2.7 reads no list of numpy.bool

    def step() -> reference.Step:
        state = torch.from_numpy(rng.normal(size=2 * DIM))
        shift = float(rng.choice([0.0, rng.uniform(0.2, 2)])) if new else 0.0
        logits, value = reference.forward(old, state, embeddings)
        logits = logits + shift * torch.tensor(is_new)
        chosen = tuple(int(i) for i in torch.argsort(logits + torch.from_numpy(rng.gumbel(size=skills)))[-k:].flip(0))
        log_prob = reference.log_prob(logits, chosen)
        return reference.Step(state, chosen, float(log_prob), float(value), shift, rng.normal())

    return Case(weights, embeddings, is_new, [[step() for _ in range(length)] for length in lengths])


def both(case: Case, config: PPOConfig, updates: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of memskill and of the reference after several updates: weights, moments, metrics, steps."""
    return ours(case, config, updates), plain(case, config, updates)


def ours(case: Case, config: PPOConfig, updates: int) -> dict[str, Any]:
    controller = Controller(2 * DIM, DIM, HIDDEN).double()
    controller.load_state_dict(case.weights)
    optimizer = torch.optim.Adam(controller.parameters(), lr=config.learning_rate)
    steps = [step for episode in case.episodes for step in episode]
    batch = ppo.Batch(
        states_N2D=torch.stack([step.state for step in steps]),
        chosen_NK=torch.tensor([step.chosen for step in steps]),
        lengths=tuple(map(len, case.episodes)),
        **{
            field: torch.tensor([getattr(step, name) for step in steps], dtype=torch.float64)
            for field, name in (
                ("log_probs_N", "log_prob"),
                ("values_N", "value"),
                ("exploration_bonus_N", "shift"),
                ("rewards_N", "reward"),
            )
        },
    )
    new, generator = torch.tensor(case.new), torch.Generator().manual_seed(7)
    for _ in range(updates):
        stats = ppo.update(controller, optimizer, batch, case.skills, new, config, generator)
    moments = {name: optimizer.state[parameter] for name, parameter in controller.named_parameters()}
    return {
        "weights": controller.state_dict(),
        "first": {name: state["exp_avg"] for name, state in moments.items()},
        "second": {name: state["exp_avg_sq"] for name, state in moments.items()},
        "steps": int(moments["state_net.0.weight"]["step"]),
        "metrics": dataclasses.asdict(stats),
    }


def plain(case: Case, config: PPOConfig, updates: int) -> dict[str, Any]:
    weights = dict(case.weights)
    adam = reference.Adam(weights, config.learning_rate)
    generator = torch.Generator().manual_seed(7)
    for _ in range(updates):
        stats = reference.update(weights, adam, case.episodes, case.skills, case.new, config, generator)
    return {"weights": weights, "first": adam.first, "second": adam.second, "steps": adam.steps, "metrics": stats}


def check(case: Case, config: PPOConfig, updates: int = 1) -> dict[str, Any]:
    """Check that both agree. Returns the metrics of the reference."""
    found, expected = both(case, config, updates)
    assert found["steps"] == expected["steps"], "the same number of minibatches, so also of epochs"
    assert set(found["metrics"]) == set(METRICS)
    for name in METRICS:
        assert found["metrics"][name] == pytest.approx(expected["metrics"][name], rel=1e-5, abs=1e-6), name
    for what in ("first", "second", "weights"):
        assert set(found[what]) == set(expected[what])
        for name, tensor in expected[what].items():
            torch.testing.assert_close(found[what][name], tensor, rtol=1e-5, atol=1e-6, msg=f"{what} of {name}")
    return dict(expected["metrics"])


@pytest.mark.parametrize("seed", range(24))
def test_random_batches(seed: int) -> None:
    """Two updates; episodes of 1 to 6 steps, K from 1 to S, minibatches from one step to more than all steps."""
    rng = np.random.default_rng([seed, 1])
    skills = int(rng.integers(2, 7))
    case = case_of(
        seed,
        [int(length) for length in rng.integers(1, 7, size=rng.integers(1, 5))],
        skills=skills,
        k=int(rng.integers(1, skills + 1)),
        new=int(rng.integers(0, skills + 1)),
        moved=float(rng.choice([0.05, 0.1, 0.3])),
    )
    config = dataclasses.replace(
        CONFIG,
        minibatch_size=int(rng.choice([0, 1, 3, 5, 8, 100])),
        update_epochs=int(rng.integers(1, 5)),
        clip_vloss=bool(rng.integers(2)),
        target_kl=float(rng.choice([0, 0.005, 0.02])),
    )
    check(case, config, updates=2)


@pytest.mark.parametrize(
    ("lengths", "shape", "how"),
    [
        ([1], {}, {"minibatch_size": 32}),
        ([1], {"skills": 1, "k": 1, "new": 0}, {}),
        ([1, 1, 1], {}, {}),
        ([6, 1, 3], {"k": 5}, {}),
        ([6, 1, 3], {"k": 1}, {}),
        ([6, 1, 3], {"new": 0}, {}),
        ([6, 1, 3], {"new": 5}, {}),
        ([6, 1, 3], {"skills": 1, "k": 1, "new": 0}, {}),
        ([6, 1, 3], {}, {"minibatch_size": 0}),
        ([6, 1, 3], {}, {"minibatch_size": 10}),
        ([6, 1, 3], {}, {"minibatch_size": 11}),
        ([6, 1, 3], {}, {"minibatch_size": 3}),
        ([9], {"k": 5}, {"clip_vloss": True}),
    ],
)
def test_batches_at_the_edges(lengths: list[int], shape: dict[str, int], how: dict[str, Any]) -> None:
    metrics = check(case_of(3, lengths, **shape), dataclasses.replace(CONFIG, **how))
    assert (metrics["explained_variance"] == 0) is (sum(lengths) == 1)


OTHERS = {
    "gamma": 0.5,
    "gae_lambda": 0.5,
    "clip_coef": 0.02,
    "vf_coef": 5.0,
    "ent_coef": 1.0,
    "learning_rate": 1e-2,
    "clip_vloss": True,
    "minibatch_size": 7,
    "update_epochs": 2,
    "max_grad_norm": 0.05,
    "target_kl": 1e-9,
}


def test_every_setting_is_tried_here() -> None:
    assert set(OTHERS) == {field.name for field in dataclasses.fields(PPOConfig)}


@pytest.mark.parametrize("name", OTHERS)
def test_every_setting_matters_as_it_should(name: str) -> None:
    """Another value changes the result, in both in the same way. So the tests would fail if it were ignored."""
    case = case_of(5, [6, 1, 3], moved=0.2)
    config = dataclasses.replace(CONFIG, **{name: OTHERS[name]})
    check(case, config)
    here, there = ours(case, CONFIG, 1)["weights"], ours(case, config, 1)["weights"]
    assert max(float((here[part] - there[part]).abs().max()) for part in here) > 1e-4


@pytest.mark.parametrize("stop", [1, 2, 3, None])
def test_an_epoch_that_goes_too_far_is_the_last_one(stop: int | None) -> None:
    """With new steps the KL grows with each epoch. A target between the KL of two epochs stops after the later one."""
    case, config = case_of(4, [5, 4], moved=0), dataclasses.replace(CONFIG, update_epochs=4, learning_rate=1e-2)
    kls = plain(case, config, 1)["metrics"]["kls"]
    assert sorted(kls) == kls
    assert len(kls) == 4
    target = kls[-1] * 1.01 if stop is None else kls[stop - 1] * 0.99
    metrics = check(case, dataclasses.replace(config, target_kl=target))
    assert len(metrics["kls"]) == (stop or 4)
    assert metrics["approx_kl"] == pytest.approx(kls[(stop or 4) - 1]), "the last epoch's metrics are reported"


def test_clipping_and_gradient_norms_are_met_on_both_sides() -> None:
    """The batches above test clipping: their ratios and gradient norms are on both sides of the limits."""
    metrics = plain(case_of(3, [6, 1, 3]), CONFIG, 1)["metrics"]
    assert 0.1 < metrics["clipfrac"] < 0.9
    norms = [plain(case_of(seed, [4, 2]), CONFIG, 1)["metrics"]["norm"] for seed in range(8)]
    assert min(norms) < CONFIG.max_grad_norm < max(norms)


def test_returns_that_do_not_vary_have_no_explained_variance() -> None:
    case = case_of(1, [1, 1, 1])
    same = [[step._replace(reward=0.5)] for (step,) in case.episodes]
    metrics = check(dataclasses.replace(case, episodes=same), CONFIG)
    assert metrics["explained_variance"] == 0.0
