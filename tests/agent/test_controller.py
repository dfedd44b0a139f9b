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
    Policy,
    exploration_bonus,
    gumbel,
    make_state,
    select_skills,
    top_k_log_prob,
)
from memskill_cli.config import MemoryConfig

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
    draws = [select_skills(controller, state, skills, 2, generator=generator) for _ in range(6000)]
    for order in itertools.permutations(range(3), 2):
        expected = math.exp(naive_log_prob(z.tolist(), order))
        seen = sum(draw.skills == order for draw in draws) / len(draws)
        assert seen == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / len(draws)) + 1e-3)
    for draw in draws[:20]:
        assert draw.log_prob == pytest.approx(naive_log_prob(z.tolist(), draw.skills), abs=1e-5)


class Fixed:
    """In the controller's place: the same logits for every state."""

    def __init__(self, *logits: float) -> None:
        self.policy = Policy(torch.tensor([logits]), torch.tensor([0.25]))

    def __call__(self, states_N2D: torch.Tensor, skills_SD: torch.Tensor) -> Policy:
        return self.policy


def test_unequal_skills_are_drawn_first_and_second_as_often_as_their_probabilities() -> None:
    p = (0.7, 0.25, 0.05)
    fixed, generator = Fixed(*map(math.log, p)), torch.Generator().manual_seed(2)
    state, skills = np.zeros(2, dtype=np.float32), torch.zeros(3, 1)
    draws = [select_skills(fixed, state, skills, 2, generator=generator).skills for _ in range(4000)]  # type: ignore[arg-type]
    for first, second in itertools.permutations(range(3), 2):
        expected = p[first] * p[second] / (1 - p[first])
        deviation = math.sqrt(expected * (1 - expected) / len(draws))
        assert draws.count((first, second)) / len(draws) == pytest.approx(expected, abs=4 * deviation)


def test_the_noise_is_that_of_gumbel_and_finite_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = gumbel(200_000, torch.Generator().manual_seed(0)).double()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.04)
    for end, sign in ((torch.zeros, -1), (torch.ones, 1)):
        monkeypatch.setattr(torch, "rand", lambda size, generator, dtype=None, end=end: end(size, dtype=dtype))
        found = gumbel(2, torch.Generator())
        assert found.isfinite().all()
        assert (sign * found > 5).all()


def test_of_equal_skills_the_first_by_name_are_chosen() -> None:
    drawn = select_skills(Fixed(*[0.5] * 30), np.zeros(2, dtype=np.float32), torch.zeros(30, 1), 7)  # type: ignore[arg-type]
    assert drawn.skills == tuple(range(7))
    assert (drawn.value, drawn.exploration_bonus) == (0.25, 0.0)


def test_without_a_generator_the_choice_is_plain_top_k_and_k_is_bounded_by_the_bank() -> None:
    controller = Controller.seeded(4, 8, seed=3)
    state, skills = np.ones(8, dtype=np.float32), torch.eye(4)
    z = controller(torch.from_numpy(state)[None], skills).logits_NS[0]
    assert list(select_skills(controller, state, skills, 9).skills) == z.argsort(descending=True).tolist()


def test_the_network_is_the_one_described() -> None:
    """Logits from the concatenation [h_s ; h_a] computed pair by pair, and parameter names of released checkpoints."""
    controller = Controller.seeded(4, 8, seed=0)
    generator = torch.Generator().manual_seed(0)
    states, skills = (torch.randn(size, generator=generator) for size in ((3, 8), (5, 4)))
    policy = controller(states, skills)
    for n, s in itertools.product(range(3), range(5)):
        pair = torch.cat([controller.state_net(states[n]), controller.op_net(skills[s])])
        assert policy.logits_NS[n, s].item() == pytest.approx(controller.actor_head(pair).item(), abs=1e-5)
    assert policy.values_N.tolist() == pytest.approx(
        controller.critic_head(controller.state_net(states)).flatten().tolist()
    )
    nets = ("state_net", "op_net", "actor_head", "critic_head")
    assert set(controller.state_dict()) == {f"{n}.{i}.{w}" for n in nets for i in (0, 2) for w in ("weight", "bias")}


def test_the_towers_have_two_layers_with_a_relu_after_each_and_the_heads_one_hidden_layer() -> None:
    """Worked out in numpy from the weights alone. The width is the one asked for, 256 unless another is."""
    controller = Controller.seeded(4, 6, seed=0)
    weights = {name: tensor.detach().double().numpy() for name, tensor in controller.state_dict().items()}

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    rng = np.random.default_rng(0)
    states, skills = rng.normal(size=(3, 8)) * 4, rng.normal(size=(5, 4)) * 4
    found = controller(torch.tensor(states).float(), torch.tensor(skills).float())
    of_state = relu(layer("state_net.2", relu(layer("state_net.0", states))))
    of_skill = relu(layer("op_net.2", relu(layer("op_net.0", skills))))
    for n, s in itertools.product(range(3), range(5)):
        pair = np.concatenate([of_state[n], of_skill[s]])
        logit = layer("actor_head.2", relu(layer("actor_head.0", pair)))
        assert found.logits_NS[n, s].item() == pytest.approx(logit.item(), abs=1e-5)
    values = layer("critic_head.2", relu(layer("critic_head.0", of_state)))
    assert found.values_N.tolist() == pytest.approx(values[:, 0].tolist(), abs=1e-5)
    shapes = {name: tuple(w.shape) for name, w in weights.items() if name.endswith("0.weight")}
    assert shapes == {
        "state_net.0.weight": (6, 8),
        "op_net.0.weight": (6, 4),
        "actor_head.0.weight": (6, 12),
        "critic_head.0.weight": (6, 6),
    }
    assert Controller(8, 4).state_net[0].out_features == 256


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
    shift = Exploration(new, p_min, fade=1.0).bonus(torch.tensor(z, dtype=torch.float64))
    shifted = (torch.tensor(z, dtype=torch.float64) + shift * new.double()).softmax(0)[new].sum().item()
    if p_new == 0 or p_new >= p_min:
        assert shift == 0
    elif p_new >= 0.01:
        assert shifted == pytest.approx(p_min, abs=1e-9)
    else:  # capped
        assert shift == pytest.approx(math.log(p_min * 0.99 / (0.01 * (1 - p_min))))
        assert p_new < shifted < p_min + 1e-9


def test_the_shift_fades_and_is_what_the_choice_was_drawn_with() -> None:
    assert exploration_bonus(0.1, 0.3, fade=0.5) == pytest.approx(0.5 * math.log(0.3 * 0.9 / (0.1 * 0.7)))
    assert exploration_bonus(0.1, 0.3, fade=0.0) == 0
    assert exploration_bonus(0.1, 0.3) == pytest.approx(math.log(0.3 * 0.9 / (0.1 * 0.7)))
    half = Exploration(torch.tensor([True, False]), new_skill_min_prob=0.3, fade=0.5)
    shift = half.bonus(torch.tensor([0.1, 0.9], dtype=torch.float64).log())
    assert shift == pytest.approx(0.5 * math.log(0.3 * 0.9 / (0.1 * 0.7)))
    controller, state = Controller.seeded(4, 8, seed=3), np.ones(8, dtype=np.float32)
    skills = torch.eye(4)
    new = torch.tensor([True, False, False, False])
    z = controller(torch.from_numpy(state)[None], skills).logits_NS[0]
    exploration = Exploration(new, new_skill_min_prob=0.6, fade=1.0)
    drawn = select_skills(
        controller, state, skills, 2, generator=torch.Generator().manual_seed(0), exploration=exploration
    )
    assert drawn.exploration_bonus == pytest.approx(exploration.bonus(z))
    assert drawn.exploration_bonus > 0
    assert drawn.log_prob == pytest.approx(
        naive_log_prob((z + drawn.exploration_bonus * new).tolist(), drawn.skills), abs=1e-5
    )
    powers = np.exp((z + drawn.exploration_bonus * new).detach().double().numpy())
    expected = [powers[skill] / powers.sum() for skill in drawn.skills]
    assert drawn.probabilities == pytest.approx(expected, abs=1e-6), "of the distribution that was drawn from"


def test_the_state_is_the_span_beside_the_fused_memories() -> None:
    span = np.array([1, 0], dtype=np.float32)
    memories = np.array([[1, 0], [0, 1]], dtype=np.float32)
    assert make_state(span, memories[:0]).tolist() == [1, 0, 0, 0]
    assert make_state(span, memories).tolist() == [1, 0, 0.5, 0.5]
    weight = math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 1)
    fused = make_state(span, memories, fuse="softmax", tau=0.5)
    assert fused.tolist() == pytest.approx([1, 0, weight, 1 - weight])


def test_memories_are_averaged_over_their_number_as_32_bit_floats() -> None:
    span = np.array([1, 0], dtype=np.float32)
    memories = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], dtype=np.float32)
    state = make_state(span, memories)
    assert state.tolist() == [1, 0, 0.25, 0.75]
    assert state.dtype == np.float32
    usual = make_state(span, memories, fuse="softmax")
    assert usual.tolist() == make_state(span, memories, fuse="softmax", tau=MemoryConfig().tau).tolist()


def test_a_small_tau_leaves_the_nearest_memory_alone() -> None:
    span = np.array([1, 0], dtype=np.float32)
    memories = np.array([[0.8, 0.6], [0, 1]], dtype=np.float32)
    assert make_state(span, memories, fuse="softmax", tau=1e-3).tolist() == pytest.approx([1, 0, 0.8, 0.6])


def test_a_new_skill_without_any_probability_is_raised_by_the_cap() -> None:
    """Its softmax is 0 in float32, as if there were no new skill: the cap is the shift for a probability of 0.01."""
    logits = torch.tensor([-200.0, 0.0, 0.0])
    window = Exploration(torch.tensor([True, False, False]), 0.3, 1.0)
    assert window.bonus(logits) == pytest.approx(math.log(0.3 * 0.99 / (0.01 * 0.7)))
    assert Exploration(torch.tensor([False, False, False]), 0.3, 1.0).bonus(logits) == 0.0
