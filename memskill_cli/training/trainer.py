"""The training loop: inner epochs of rollout and policy update, in stages (algorithm of arXiv 2602.02474).

    for each outer epoch (a stage):
        roll back if the last stage was no better; the designer changes the bank    evolution.py
        for each inner epoch:
            draw a batch of episodes: spans and queries                             episode_sampler.py
            build a memory and answer the queries, with the skill bank fixed        train_episode.py, rollout/episode.py
            compute the reward of every step                                        rollout/rewards.py
            update the controller                                                   algorithms.py, ppo.py
            store the queries that were answered wrong                              agent/hard_cases.py
            write metrics, then a checkpoint                                        metrics.py, runs/checkpoint.py
        judge the stage by the last quarter of its rewards                          skills/stages.py
        (or its change by held-out questions)                                       gate.py

Every random draw is seeded from (seed, outer, inner, episode), and the results of episodes are used in batch order.
So the result of a run does not depend on concurrency, and it is the same after an interruption and resume (resume.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from memskill_cli.agent.controller import Controller, Exploration
from memskill_cli.agent.designer import Designer
from memskill_cli.agent.hard_cases import HardCasePool
from memskill_cli.config import Config
from memskill_cli.distributed.base import Engine, LocalEngine
from memskill_cli.errors import ModelError
from memskill_cli.llm.ledger import Ledger
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.rollout.rewards import reward_of, score_result
from memskill_cli.rollout.step_rows import step_row
from memskill_cli.runs import checkpoint
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.stages import Scores
from memskill_cli.training import metrics, ppo
from memskill_cli.training.algorithms import algorithm, group_size
from memskill_cli.training.episode_sampler import EpisodeSampler, EpisodeSpec
from memskill_cli.training.evolution import Evolution
from memskill_cli.training.gate import ValGate
from memskill_cli.training.held_out import HeldOut
from memskill_cli.training.train_episode import EpisodeCallbacks, PolicySnapshot, run_training_episode
from memskill_cli.types import Episode
from memskill_cli.utils import devices, files
from memskill_cli.utils.seeding import seed_from

_COUNTED = 2_000
"""Episodes whose spans are counted for a progress bar."""


@dataclasses.dataclass(frozen=True)
class TrainCallbacks:
    """Functions that a training calls while it runs: after each span and each inner epoch, and with messages."""

    on_span: Callable[[], None] = lambda: None
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None
    notice: Callable[[str], None] = lambda text: None


class Trainer:
    """The state of one run: controller, optimizer and skill bank after ``num_updates`` inner epochs."""

    def __init__(
        self,
        run: RunDir,
        settings: Config,
        context: RolloutContext,
        ledger: Ledger,
        sampler: EpisodeSampler,
        bank: SkillBank,
        designer: Designer | None,
        callbacks: TrainCallbacks,
        engine: Engine | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self.run, self.settings, self.context, self.ledger = run, settings, context, ledger
        self.sampler, self.bank, self.designer, self.callbacks = sampler, bank, designer, callbacks
        self.engine = engine or LocalEngine(context)
        self.evolution = Evolution(run.stages, settings.designer, lambda text: self.callbacks.notice(text))
        notice = self.evolution.notice
        self.gate = ValGate(held_out, run.stages, run.checkpoints, self.engine, context.encoders, notice)
        self.pool = HardCasePool(settings.designer)
        encoders, hidden = context.encoders, settings.controller.hidden
        self.controller = Controller.seeded(encoders.state.dim, hidden, settings.seed, skill_dim=encoders.of_skills.dim)
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=settings.ppo.learning_rate)
        self.device = devices.resolve_device(settings.controller.device, "controller.device")
        self.num_updates = 0
        self.exploration_start = 0  # inner epoch at which the exploration of new skills began
        self.rewards: list[float] = []  # mean episode rewards of the inner epochs of this stage so far
        self.rows: list[dict[str, Any]] = []  # metrics of all inner epochs so far
        self.best: int | None = None  # the best stage's checkpoint
        self.scores: Scores | None = None  # of held-out questions, at the end of a stage that they judge

    @property
    def total(self) -> int:
        """The number of inner epochs of the run."""
        return self.settings.train.outer_epochs * self.settings.train.inner_epochs

    @property
    def stage_epochs(self) -> int:
        """The number of inner epochs of a stage."""
        return self.settings.train.inner_epochs * self.settings.designer.every

    @property
    def _at_stage_end(self) -> bool:
        return self.num_updates % self.stage_epochs == 0 or self.num_updates == self.total

    def spans_ahead(self) -> int:
        """The number of spans in all remaining episodes, for a progress bar.

        In a long training it is estimated from the first episodes: counting all of them would take too long.
        """
        ahead = range(self.num_updates, self.total)
        counted = ahead[: max(1, _COUNTED // self.settings.train.batch_size)]
        spans = sum(len(episode_spec.spans) for done in counted for episode_spec in self._episode_specs(done))
        return round(spans * len(ahead) / len(counted)) if counted else 0

    async def train(self) -> None:
        """Run the remaining inner epochs. Then the skill bank of the run is that of its best stage."""
        self.evolution.begin(self.bank)
        if not self.num_updates:
            self._save()  # a run that is killed in its first inner epoch resumes from here
        while self.num_updates < self.total:
            outer, inner = divmod(self.num_updates, self.settings.train.inner_epochs)
            began, before = time.monotonic(), metrics.usage_baseline(self.ledger.usage(), self.rows)
            if self.num_updates and self.num_updates % self.stage_epochs == 0 and not await self._next_stage():
                break
            skills_SD = await self._skill_vectors()
            episodes = await self._collect(outer, inner, skills_SD)
            self._check_skipped(episodes)
            stats = self._update_policy(self._scored(episodes), outer, inner, skills_SD)
            self._update_hard_cases(episodes)
            self.num_updates += 1
            self.scores = None
            if self._at_stage_end:  # before the line of metrics, which reports what it cost
                self.scores = await self.gate.measure_challenger(self.bank, self.controller, self.num_updates)
            effort = metrics.EpochUsage(before, self.ledger.usage(), time.monotonic() - began)
            self._write_steps(outer, inner, episodes[0])
            row = metrics.metrics_row(outer, inner, self.bank, episodes, stats, effort)
            self.rows.append(row)
            self.rewards.append(row["episode_reward_mean"])
            files.append_line(self.run.metrics, row, durable=True)
            self._save()
            self.close_epoch()
            self.callbacks.on_epoch(row)
        self._end_on_best()

    def _check_skipped(self, episodes: Sequence[Episode]) -> None:
        """Say how much of a batch was left out because models refused it. ModelError if it is too much of the run.

        Nothing is written before: when the run is resumed, the same prompts are sent again.
        """
        now = metrics.skipped(episodes)
        if not now["skipped_spans"] and not now["skipped_queries"]:
            return
        steps = sum(len(episode.steps) for episode in episodes)
        share, most = metrics.skipped_share([*self.rows, {"steps": steps, **now}]), self.settings.limits.max_skipped
        why = metrics.first_refusal(episodes)
        if share > most:
            raise ModelError(
                f"models refused {share:.0%} of the run's spans and queries, more than limits.max_skipped: {why}",
                hint=f"use another model, or continue: --resume --set limits.max_skipped={min(1.0, share + 0.1):.2f}",
            )
        self.callbacks.notice(
            f"left out in inner epoch {self.num_updates + 1}: {now['skipped_spans']} spans and "
            f"{now['skipped_queries']} queries that a model refused: {why}"
        )

    def _scored(self, episodes: Sequence[Episode]) -> list[Episode]:
        """The episodes that train the controller: whole groups that have rewards. ModelError if none is left."""
        size = group_size(self.settings.train)
        groups = [episodes[first : first + size] for first in range(0, len(episodes), size)]
        found = [episode for group in groups if all(each.scored for each in group) for episode in group]
        if not found:
            raise ModelError(
                f"models refused all queries of inner epoch {self.num_updates + 1}: {metrics.first_refusal(episodes)}",
                hint="use another model, or another seed",
            )
        return found

    async def _next_stage(self) -> bool:
        """Start the next stage, after a rollback if the last stage was no better. False if training should stop.

        If there is a stage that is not judged yet (proposed before a crash, or by ``memskill evolve``), it is used.
        """
        if self.designer is not None:
            self._roll_back()
        stage = stages.first_unjudged(stages.read_all(self.run.stages), self.bank.stage) or await self._new_stage()
        if stage is not None:
            if stage.change:
                await self.gate.measure_champion(stage.number, self.controller, self.num_updates)
            self.bank, self.exploration_start, self.rewards = stage.bank.copy(), self.num_updates, []
        return stage is not None

    async def _new_stage(self) -> stages.Stage | None:
        if self.designer is None:
            return self.evolution.repeat_stage(self.bank)
        if why := self.evolution.stop_reason():
            self.callbacks.notice(f"stopping early: {why}")
            return None
        encoder = self.context.encoders.retrieval
        return await self.evolution.propose(self.designer, self.bank, self.pool, encoder, self.settings.seed)

    def _roll_back(self) -> None:
        """Go back to bank, statistics and hard cases of the best stage, unless it is the last. Keep the controller."""
        champion = stages.best(stages.read_all(self.run.stages))
        if champion is None or champion.number == self.bank.stage or champion.checkpoint is None:
            return
        loss = self.gate.describe_loss(self.bank.stage)
        self.callbacks.notice(f"stage {self.bank.stage} {loss}: rolled back to stage {champion.number}")
        self.bank = champion.bank.copy()
        found = checkpoint.load_latest(self.run.checkpoints, self.callbacks.notice, upto=champion.checkpoint)
        if found is not None:
            self.pool = HardCasePool.from_rows(self.settings.designer, found.state["hard_cases"])
        if found is None or found.num_updates != champion.checkpoint:
            instead = f"those of inner epoch {found.num_updates}" if found is not None else "the current ones"
            self.callbacks.notice(f"checkpoint {champion.checkpoint:06d} cannot be used: the hard cases are {instead}")

    def _update_hard_cases(self, episodes: Sequence[Episode]) -> None:
        reward = reward_of(self.settings.reward)
        threshold = reward.threshold(self.settings.designer)
        for episode in episodes:
            self.pool.observe(episode.results, self.num_updates, partial(score_result, reward), threshold)
        self.pool.prune(self.num_updates)

    async def _skill_vectors(self) -> torch.Tensor:
        return torch.from_numpy(
            await self.context.encoders.of_skills.aencode([s.description for s in self.bank.skills])
        )

    async def _collect(self, outer: int, inner: int, skills_SD: torch.Tensor) -> list[Episode]:
        """Run a batch of episodes concurrently. The result is in batch order."""
        snapshot = PolicySnapshot(
            self.controller, self.bank, skills_SD, self.settings.train.num_skills, self._exploration()
        )
        tasks = []
        try:
            async with (
                self.engine.open_pool(snapshot, EpisodeCallbacks(self.callbacks.on_span)) as pool,
                asyncio.TaskGroup() as group,
            ):
                for index, episode_spec in enumerate(self._episode_specs(self.num_updates)):
                    seed = seed_from(self.settings.seed, outer, inner, index)
                    tasks.append(group.create_task(pool.run(run_training_episode, episode_spec, seed)))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    def _update_policy(
        self, episodes: Sequence[Episode], outer: int, inner: int, skills_SD: torch.Tensor
    ) -> ppo.PPOStats:
        generator = torch.Generator().manual_seed(seed_from(self.settings.seed, "ppo", outer, inner))
        new_S, device = self._exploration().new_S, self.device
        with ppo.on_device(device, self.controller, self.optimizer):
            policy = ppo.PolicyUpdate(
                self.controller,
                self.optimizer,
                skills_SD.to(device),
                new_S.to(device),
                self.settings.ppo,
                generator,
                device,
                group_size(self.settings.train),
            )
            stats = algorithm(self.settings.train.algorithm)(episodes, policy)
        # Skills get the reward of the whole episode: the reward of a step depends more on its position in the episode
        # than on its skills.
        used = [(step.selection.skills, episode.reward) for episode in episodes for step in episode.steps]
        self.bank.record_batch([skills for skills, _ in used], [reward for _, reward in used])
        if self.num_updates + 1 - self.exploration_start >= self.settings.controller.new_skill_epochs:
            self.bank.clear_new()
        return stats

    def _exploration(self) -> Exploration:
        """Exploration of the skills that are new in the bank. Its strength falls linearly from 1 to 0."""
        how = self.settings.controller
        fade = max(0.0, 1 - (self.num_updates - self.exploration_start) / how.new_skill_epochs)
        new_S = torch.tensor([name in self.bank.new for name in self.bank.names])
        return Exploration(new_S, how.new_skill_min_prob, fade)

    def _write_steps(self, outer: int, inner: int, episode: Episode) -> None:
        """Append the steps of an inner epoch's first episode to ``steps.jsonl``. The other episodes are left out."""
        rows = [{"outer": outer, "inner": inner, "episode": 0, **step_row(step)} for step in episode.steps]
        for row in rows:
            files.append_line(self.run.steps, row, durable=row is rows[-1])

    def _save(self) -> None:
        state = {
            "dim": self.context.encoders.state.dim,
            "skill_dim": self.context.encoders.of_skills.dim,
            "hidden": self.settings.controller.hidden,
            "window_start": self.exploration_start,
            "rewards": self.rewards,
            "hard_cases": self.pool.rows(),
            "held_out": self.scores,
        }
        weights, adam = self.controller.state_dict(), checkpoint.optimizer_tensors(self.optimizer)
        contents = checkpoint.Checkpoint(self.num_updates, weights, adam, self.bank, state, run=self.run.id)
        checkpoint.save(self.run.checkpoints, contents)
        self.export_artifacts()

    def export_artifacts(self) -> None:
        """Write the hard cases and the skill bank as files of their own, for readers of the run directory."""
        files.write_atomic(self.run.hard_cases, b"".join(map(files.to_json, self.pool.rows())))
        self.bank.save(self.run.skill_bank)

    def close_epoch(self) -> None:
        """After a checkpoint: judge the stage if this was its last inner epoch, and delete old checkpoints.

        If a run is killed before this is done, it is done when the run is resumed.
        """
        at_end = self._at_stage_end
        if at_end or self.best is None:
            known = stages.read_all(self.run.stages)
            judged = any(_is_judged(stage, self.num_updates) for stage in known if stage.number == self.bank.stage)
            if at_end and self.rewards and not judged:
                decision = self.gate.decision(self.bank, self.scores)
                self.evolution.close(self.bank, self.rewards, self.num_updates, gate=decision, held_out=self.scores)
                known = stages.read_all(self.run.stages)
            champion = stages.best(known)
            self.best = champion.checkpoint if champion else None
        checkpoint.prune(self.run.checkpoints, self.settings.train.keep_checkpoints, self.best, done=self.num_updates)

    def _end_on_best(self) -> None:
        """Write the skill bank of the best stage, with its statistics, as the result of the run."""
        champion = stages.best(stages.read_all(self.run.stages))
        if champion is not None:
            champion.bank.save(self.run.skill_bank)

    def _episode_specs(self, done: int) -> Iterator[EpisodeSpec]:
        """The spans and queries of each episode of the inner epoch that follows ``done`` inner epochs."""
        outer, inner = divmod(done, self.settings.train.inner_epochs)
        return (self.sampler.episode(outer, inner, index) for index in range(self.settings.train.batch_size))


def _is_judged(stage: stages.Stage, done: int) -> bool:
    """Whether ``stage`` was judged by an evaluation, or by training after ``done`` inner epochs.

    If a stage was judged before its end because the run ended, and the run is then made longer, it is judged again.
    """
    return stage.judged and (stage.reward is None or stage.checkpoint == done)
