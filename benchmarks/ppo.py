"""One pass of PPO over a batch: ours against a plain double loop, and against the matrix products it can't do without.

    .venv/bin/python benchmarks/ppo.py [--quick]

Compared, by steps in the batch and skills in the bank, with the published sizes (384 dimensions, 256 hidden, 3 skills a
step, minibatches of 32), on one core:

- ``memskill``: ``training.ppo.update`` with one epoch. All steps of a minibatch go through the networks together.
- ``double loop``: the same mathematics as one writes it down first: for each step and each skill the networks on that
  one pair, log pi from its definition, the losses of single steps summed, one gradient step a minibatch. Timed only
  where it takes seconds.
- ``products``: nothing but the matrix products of such a pass, forward and backward, into memory that is there already.
  No program can be faster with these networks; what ours takes beyond it is autograd, Adam, and the rest of the loss.

Before anything is timed, the script checks that ours and the double loop have the same losses and gradients. The
column *operations* is no time: it counts what torch is asked to do in one minibatch that holds the whole batch. It is
the same for any number of steps, since no step has a loop of its own.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from common import Measure, clock, compared, in_turns, save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from memskill_cli.agent.controller import Controller, gumbel, top_k_log_prob
from memskill_cli.config import PPOConfig
from memskill_cli.training import ppo

DIM, HIDDEN, CHOSEN, EPISODES = 384, 256, 3, 4
LOOP_PAIRS = 4_000
"""The double loop is timed on up to so many pairs of a step and a skill."""
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Updated = tuple[Controller, list[float]]
"""A controller after a pass, and the means of policy loss, value loss and entropy."""


@dataclass(frozen=True)
class Case:
    """A controller, a batch of ``steps`` steps, a bank of ``skills`` skills; tensors as ``ppo.update`` takes them."""

    steps: int
    skills: int

    def controller(self) -> Controller:
        return Controller.seeded(DIM, HIDDEN, seed=0)

    def bank(self) -> tuple[Tensor, Tensor]:
        """Embedded descriptions, and the mark of the skills that are new: every fourth."""
        return unit_rows(self.skills, DIM, seed=1), (torch.arange(self.skills) % 4 == 0).float()

    def batch(self) -> ppo.Batch:
        """Steps as another controller chose them, so that the ratio of probabilities is not 1 throughout."""
        skills_SD, new_S = self.bank()
        generator = torch.Generator().manual_seed(2)
        states_N2D = torch.cat([unit_rows(self.steps, DIM, seed=3), unit_rows(self.steps, DIM, seed=4)], dim=1)
        shifts_N = torch.rand(self.steps, generator=generator)
        with torch.no_grad():
            logits_NS, values_N = Controller.seeded(DIM, HIDDEN, seed=9)(states_N2D, skills_SD)
        logits_NS = logits_NS + shifts_N[:, None] * new_S
        noise_NS = gumbel(self.steps * self.skills, generator).view(self.steps, self.skills)
        chosen_NK = (logits_NS + noise_NS).topk(CHOSEN).indices
        rewards_N = torch.rand(self.steps, generator=generator)
        ends = [self.steps * (number + 1) // EPISODES for number in range(EPISODES)]
        lengths = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
        log_probs_N = top_k_log_prob(logits_NS, chosen_NK)
        return ppo.Batch(states_N2D, chosen_NK, log_probs_N, values_N, shifts_N, rewards_N, lengths)


def unit_rows(count: int, dim: int, seed: int) -> Tensor:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(rows)


# --- the contestants ---------------------------------------------------------------------------------------------


def ours(case: Case, config: PPOConfig, optimizer_of: Optimizer) -> Callable[[], Updated]:
    controller, batch, (skills_SD, new_S) = case.controller(), case.batch(), case.bank()
    optimizer = optimizer_of(controller.parameters())

    def run() -> Updated:
        generator = torch.Generator().manual_seed(5)
        stats = ppo.update(controller, optimizer, batch, skills_SD, new_S, config, generator)
        return controller, [stats.policy_loss, stats.value_loss, stats.entropy]

    return run


def double_loop(case: Case, config: PPOConfig, optimizer_of: Optimizer) -> Callable[[], Updated]:
    controller, batch, (skills_SD, new_S) = case.controller(), case.batch(), case.bank()
    optimizer = optimizer_of(controller.parameters())

    def run() -> Updated:
        advantages = advantages_of(batch, config)
        targets = [advantage + value for advantage, value in zip(advantages, batch.values_N.tolist(), strict=True)]
        spread = torch.tensor(advantages)
        normal_N = (spread - spread.mean()) / (spread.std() + 1e-8)
        measured = []
        for rows in torch.randperm(case.steps, generator=torch.Generator().manual_seed(5)).split(config.minibatch_size):
            sums = torch.zeros(3)
            for row in rows.tolist():
                sums = sums + losses_of(controller, batch, row, normal_N[row], targets[row], skills_SD, new_S, config)
            policy, value, entropy = sums / len(rows)
            optimizer.zero_grad()
            (policy + config.vf_coef * value - config.ent_coef * entropy).backward()
            nn.utils.clip_grad_norm_(controller.parameters(), config.max_grad_norm)
            optimizer.step()
            measured.append([policy.item(), value.item(), entropy.item()])
        return controller, [statistics.fmean(column) for column in zip(*measured, strict=True)]

    return run


def advantages_of(batch: ppo.Batch, config: PPOConfig) -> list[float]:
    """Generalised advantage estimates by their recursion, episode by episode."""
    rewards, values = batch.rewards_N.tolist(), batch.values_N.tolist()
    found: list[float] = []
    for length in batch.lengths:
        start, running, backwards = len(found), 0.0, []
        for step in reversed(range(start, start + length)):
            following = values[step + 1] if step + 1 < start + length else 0.0
            running = (
                rewards[step] + config.gamma * following - values[step] + config.gamma * config.gae_lambda * running
            )
            backwards.append(running)
        found += backwards[::-1]
    return found


def losses_of(
    net: Controller,
    batch: ppo.Batch,
    row: int,
    advantage: Tensor,
    target: float,
    skills_SD: Tensor,
    new_S: Tensor,
    config: PPOConfig,
) -> Tensor:
    """Policy loss, value loss and entropy of one step, the networks run on one skill at a time."""
    state_H = net.state_net(batch.states_N2D[row])
    logits_S = torch.stack(
        [net.actor_head(torch.cat([state_H, net.op_net(skill_D)])).squeeze() for skill_D in skills_SD]
    )
    p_S = (logits_S + batch.exploration_bonus_N[row] * new_S).softmax(0)
    log_prob, drawn = torch.zeros(()), torch.zeros(())
    for skill in batch.chosen_NK[row].tolist():
        log_prob = log_prob + p_S[skill].log() - (1 - drawn).log()
        drawn = drawn + p_S[skill]
    ratio = (log_prob - batch.log_probs_N[row]).exp()
    clipped = ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
    policy = -torch.min(ratio * advantage, clipped * advantage)
    value = 0.5 * (net.critic_head(state_H).squeeze() - target) ** 2
    return torch.stack([policy, value, -(p_S * p_S.log()).sum()])


def products(case: Case, config: PPOConfig) -> Callable[[], None]:
    """Each layer's product of (rows, in) and (in, out), its gradient by weight, and, past the first, by input."""
    sizes = [min(config.minibatch_size, case.steps - start) for start in range(0, case.steps, config.minibatch_size)]
    made = {size: [factors(*shape) for shape in shapes(size, case.skills)] for size in set(sizes)}

    def run() -> None:
        for size in sizes:
            for left, right, whole, by_weight, by_input, inner in made[size]:
                torch.mm(left, right, out=whole)
                torch.mm(left.T, whole, out=by_weight)
                if inner:
                    torch.mm(whole, right.T, out=by_input)

    return run


def shapes(steps: int, skills: int) -> list[tuple[int, int, int, bool]]:
    """(rows, in, out, whether its input has a gradient) of the controller's layers; the actor's first is in halves."""
    return [
        (steps, 2 * DIM, HIDDEN, False),
        (steps, HIDDEN, HIDDEN, True),
        (skills, DIM, HIDDEN, False),
        (skills, HIDDEN, HIDDEN, True),
        (steps, HIDDEN, HIDDEN, True),
        (skills, HIDDEN, HIDDEN, True),
        (steps * skills, HIDDEN, 1, True),
        (steps, HIDDEN, HIDDEN, True),
        (steps, HIDDEN, 1, True),
    ]


def factors(rows: int, inside: int, outside: int, inner: bool) -> tuple[Any, ...]:
    left, right = torch.randn(rows, inside), torch.randn(inside, outside)
    return left, right, torch.empty(rows, outside), torch.empty_like(right), torch.empty_like(left), inner


# --- what is checked and measured --------------------------------------------------------------------------------


def check(config: PPOConfig) -> dict[str, float]:
    """How far ours and the double loop are apart in one minibatch: the largest difference of a loss, and of a gradient
    as a share of the largest gradient. SystemExit if that is more than rounding."""
    whole = replace(config, minibatch_size=64, max_grad_norm=math.inf)
    still = partial(torch.optim.SGD, lr=0.0)
    case = Case(64, 8)
    net, losses = ours(case, whole, still)()
    plain_net, plain_losses = double_loop(case, whole, still)()
    loss = max(abs(one - other) for one, other in zip(losses, plain_losses, strict=True))
    mine, plain = (torch.cat([weight.grad.flatten() for weight in one.parameters()]) for one in (net, plain_net))
    gradient = ((mine - plain).abs().max() / plain.abs().max()).item()
    if max(loss, gradient) > 1e-4:
        raise SystemExit(f"ours and the double loop differ: losses by {loss:.2g}, gradients by {gradient:.2g}")
    return {"loss": loss, "gradient": gradient}


def operations(case: Case, config: PPOConfig) -> int:
    """How many operations torch is asked for in an update of one minibatch."""

    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return func(*args, **(kwargs or {}))

    run = ours(case, replace(config, minibatch_size=case.steps), adam)
    run()  # Adam makes its averages in the first one
    with Counting() as counting:
        run()
    return counting.count


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-4)


def measure(case: Case, config: PPOConfig, rounds: int) -> dict[str, Any]:
    """Medians in milliseconds a contestant, and the operations of one minibatch."""
    runners: dict[str, Callable[[], object]] = {}
    runners |= {"memskill": ours(case, config, adam), "products": products(case, config)}
    if case.steps * case.skills <= LOOP_PAIRS:
        runners["double loop"] = double_loop(case, config, adam)
    times: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        run()
    for _, name in in_turns(runners, rounds):
        clock(times[name], runners[name])
    medians = {name: statistics.median(taken) * 1e3 for name, taken in times.items()}
    return {"steps": case.steps, "skills": case.skills, **medians, "operations": operations(case, config)}


def summary_of(rows: list[dict[str, Any]]) -> list[Measure]:
    found = []
    for row in rows:
        what = f"one pass over {row['steps']:,} steps, {row['skills']} skills"
        if "double loop" in row:
            found.append(compared(what, row["memskill"], "ms", "double loop", row["double loop"]))
        found.append(compared(what, row["memskill"], "ms", "its matrix products", row["products"]))
    few, many = rows[0], max(rows, key=lambda row: row["steps"])
    what = f"operations in one minibatch of {many['steps']:,} steps"
    found.append(compared(what, many["operations"], "", f"{few['steps']} steps", few["operations"], at_most=1))
    return found


def show(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="milliseconds a pass over the batch (in brackets: times ours)", title_justify="left")
    names = ("memskill", "double loop", "products")
    for column in ("steps", "skills", *names, "operations"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [f"{row[name]:,.2f} ({row[name] / row['memskill']:.2f})" if name in row else "" for name in names]
        table.add_row(f"{row['steps']:,}", str(row["skills"]), *cells, str(row["operations"]))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    config = replace(PPOConfig(), update_epochs=1)
    same = check(config)
    sizes = [(32, 4), (32, 30), (128, 30)] if quick else [(n, s) for s in (4, 30, 120) for n in (32, 128, 512, 2048)]
    rows = [measure(Case(steps, skills), config, rounds=3 if quick else 9) for steps, skills in sizes]
    path = save("ppo", summary_of(rows), rows=rows, differences=same)
    console = Console(width=120)
    console.print(show(rows))
    console.print(
        f"ours and the double loop differ by {same['loss']:.0e} in losses, {same['gradient']:.0e} in gradients"
    )
    console.print(str(path))


if __name__ == "__main__":
    main()
