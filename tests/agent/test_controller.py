"""The controller's mathematics, against independent small derivations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.agent.controller import (
    Controller,
    Exploration,
    choose,
    exploration_shift,
    make_state,
    top_k_log_prob,
)

logits = st.lists(st.floats(-6, 6), min_size=2, max_size=5)


def naive_log_prob(z: list[float], chosen: tuple[int, ...]) -> float:
    """The formula of the paper, word for word, in float64."""
    p = np.exp(z) / np.exp(z).sum()
    total = 0.0
    for i, a in enumerate(chosen):
        total += math.log(p[a]) - math.log(1 - sum(p[j] for j in chosen[:i]))
    return total


@settings(max_examples=60, deadline=None)
@given(z=logits, k=st.integers(1, 3))
def test_ordered_draws_have_the_papers_probabilities_and_sum_to_one(z: list[float], k: int) -> None:
    k = min(k, len(z))
    draws = list(itertools.permutations(range(len(z)), k))
    rows = torch.tensor([z], dtype=torch.float64).repeat(len(draws), 1)
    ours = top_k_log_prob(rows, torch.tensor(draws))
    assert ours.exp().sum().item() == pytest.approx(1, abs=1e-9)
    for log_prob, draw in zip(ours.tolist(), draws, strict=True):
        if k < len(z):  # drawing all, the naive form divides by a rounding error
            assert log_prob == pytest.approx(naive_log_prob(z, draw), abs=1e-6)


def test_log_prob_stays_finite_when_the_drawn_skill_holds_all_the_probability() -> None:
    value = top_k_log_prob(torch.tensor([[60.0, 0.0, -1.0]]), torch.tensor([[0, 2]]))
    assert value.item() == pytest.approx(-1 - math.log(1 + math.exp(-1)), abs=1e-5)


def test_gumbel_top_k_draws_each_ordered_set_as_often_as_its_probability() -> None:
    controller = Controller.seeded(4, 8, seed=3)
    state = np.random.default_rng(0).normal(size=8).astype(np.float32)
    skills = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)) * 8
    z = controller(torch.from_numpy(state)[None], skills).logits_NS[0]
    generator = torch.Generator().manual_seed(7)
    draws = [choose(controller, state, skills, 2, generator=generator) for _ in range(6000)]
    for order in itertools.permutations(range(3), 2):
        expected = math.exp(naive_log_prob(z.tolist(), order))
        seen = sum(draw.skills == order for draw in draws) / len(draws)
        assert seen == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / len(draws)) + 1e-3)
    for draw in draws[:20]:
        assert draw.log_prob == pytest.approx(naive_log_prob(z.tolist(), draw.skills), abs=1e-5)


def test_without_a_generator_the_choice_is_plain_top_k_and_k_is_bounded_by_the_bank() -> None:
    controller = Controller.seeded(4, 8, seed=3)
    state, skills = np.ones(8, dtype=np.float32), torch.eye(4)
    z = controller(torch.from_numpy(state)[None], skills).logits_NS[0]
    assert list(choose(controller, state, skills, 9).skills) == z.argsort(descending=True).tolist()


def test_the_network_is_the_one_described() -> None:
    """Logits from the concatenation [h_s ; h_a] computed pair by pair, and parameter names of released checkpoints."""
    controller = Controller.seeded(4, 8, seed=0)
    states, skills = torch.randn(3, 8), torch.randn(5, 4)
    policy = controller(states, skills)
    for n, s in itertools.product(range(3), range(5)):
        pair = torch.cat([controller.state_net(states[n]), controller.op_net(skills[s])])
        assert policy.logits_NS[n, s].item() == pytest.approx(controller.actor_head(pair).item(), abs=1e-5)
    assert policy.values_N.tolist() == pytest.approx(
        controller.critic_head(controller.state_net(states)).flatten().tolist()
    )
    nets = ("state_net", "op_net", "actor_head", "critic_head")
    assert set(controller.state_dict()) == {f"{n}.{i}.{w}" for n in nets for i in (0, 2) for w in ("weight", "bias")}


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = Controller.seeded(4, 8, seed=1), Controller.seeded(4, 8, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@settings(max_examples=100, deadline=None)
@given(z=logits, p_min=st.floats(0.05, 0.9), data=st.data())
def test_the_exploration_shift_makes_p_new_exactly_p_min(z: list[float], p_min: float, data: st.DataObject) -> None:
    new = torch.tensor([data.draw(st.booleans()) for _ in z])
    p = torch.tensor(z, dtype=torch.float64).softmax(0)
    p_new = p[new].sum().item()
    shift = Exploration(new, p_min, fade=1.0).shift(torch.tensor(z, dtype=torch.float64))
    shifted = (torch.tensor(z, dtype=torch.float64) + shift * new.double()).softmax(0)[new].sum().item()
    if p_new == 0 or p_new >= p_min:
        assert shift == 0
    elif p_new >= 0.01:
        assert shifted == pytest.approx(p_min, abs=1e-9)
    else:  # capped
        assert shift == pytest.approx(math.log(p_min * 0.99 / (0.01 * (1 - p_min))))
        assert p_new < shifted < p_min + 1e-9


def test_the_shift_fades_and_is_what_the_choice_was_drawn_with() -> None:
    assert exploration_shift(0.1, 0.3, fade=0.5) == pytest.approx(0.5 * math.log(0.3 * 0.9 / (0.1 * 0.7)))
    assert exploration_shift(0.1, 0.3, fade=0.0) == 0
    controller, state = Controller.seeded(4, 8, seed=3), np.ones(8, dtype=np.float32)
    skills = torch.eye(4)
    new = torch.tensor([True, False, False, False])
    z = controller(torch.from_numpy(state)[None], skills).logits_NS[0]
    exploration = Exploration(new, p_min=0.6, fade=1.0)
    drawn = choose(controller, state, skills, 2, generator=torch.Generator().manual_seed(0), exploration=exploration)
    assert drawn.shift == pytest.approx(exploration.shift(z))
    assert drawn.shift > 0
    assert drawn.log_prob == pytest.approx(naive_log_prob((z + drawn.shift * new).tolist(), drawn.skills), abs=1e-5)


def test_the_state_is_the_span_beside_the_fused_memories() -> None:
    span = np.array([1, 0], dtype=np.float32)
    memories = np.array([[1, 0], [0, 1]], dtype=np.float32)
    assert make_state(span, memories[:0]).tolist() == [1, 0, 0, 0]
    assert make_state(span, memories).tolist() == [1, 0, 0.5, 0.5]
    weight = math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 1)
    fused = make_state(span, memories, fuse="softmax", tau=0.5)
    assert fused.tolist() == pytest.approx([1, 0, weight, 1 - weight])
