"""The whole method: inner epochs of rollout and PPO, in stages (algorithm of arXiv 2602.02474).

    for each outer epoch (a stage):
        roll back if the last stage lost, then let the designer change the bank     evolution.py
        for each inner epoch:
            draw a batch of episodes: what is read, what is asked                   curriculum.py
            read and ask, with the skill bank fixed                                 lessons.py, rollout.py
            reward every step                                                       rewards.py
            update the controller                                                   ppo.py
            remember what was answered wrong                                        hard_cases.py
            write metrics, then a checkpoint                                        metrics.py, runs/checkpoint.py
        judge the stage by the last quarter of its rewards                          stages.py

Every random draw is seeded from (seed, outer, inner, episode) and episodes are merged in batch order, so a run's
result depends neither on concurrency nor on being interrupted and resumed (resuming.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from memskill_cli.agent.controller import Controller, Exploration
from memskill_cli.agent.designer import Designer
from memskill_cli.agent.hard_cases import HardCasePool
from memskill_cli.config import Config
from memskill_cli.distributed.base import Engine, LocalEngine
from memskill_cli.llm.ledger import Ledger
from memskill_cli.rollout.episode import World
from memskill_cli.runs import checkpoint
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.training import metrics, ppo
from memskill_cli.training.episode_sampler import Curriculum, Lesson
from memskill_cli.training.evolution import Evolution
from memskill_cli.training.train_episode import Desk, Standing, attend
from memskill_cli.types import Episode
from memskill_cli.utils import devices, files
from memskill_cli.utils.seeding import seed_from


@dataclasses.dataclass(frozen=True)
class Watcher:
    """What a training tells while it runs: spans read, inner epochs done, and things worth a line."""

    span: Callable[[], None] = lambda: None
    epoch: Callable[[dict[str, Any]], None] = lambda row: None
    notice: Callable[[str], None] = lambda text: None


class Trainer:
    """One run in memory: controller, optimizer and bank after ``done`` inner epochs."""

    def __init__(
        self,
        run: RunDir,
        settings: Config,
        world: World,
        ledger: Ledger,
        curriculum: Curriculum,
        bank: SkillBank,
        designer: Designer | None,
        watcher: Watcher,
        engine: Engine | None = None,
    ) -> None:
        self.run, self.settings, self.world, self.ledger = run, settings, world, ledger
        self.curriculum, self.bank, self.designer, self.watcher = curriculum, bank, designer, watcher
        self.engine = engine or LocalEngine(world)
        self.evolution = Evolution(run.stages, settings.designer, lambda text: self.watcher.notice(text))
        self.pool = HardCasePool(settings.designer)
        spaces, hidden = world.spaces, settings.controller.hidden
        self.controller = Controller.seeded(spaces.state.dim, hidden, settings.seed, skill_dim=spaces.of_skills.dim)
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=settings.ppo.learning_rate)
        self.device = devices.pick(settings.controller.device, "controller.device")
        self.done = 0
        self.window_start = 0  # inner epoch from which the bank's new skills are explored
        self.rewards: list[float] = []  # of the stage's inner epochs so far
        self.rows: list[dict[str, Any]] = []  # metrics of all inner epochs so far
        self.best: int | None = None  # the best stage's checkpoint

    @property
    def total(self) -> int:
        """Inner epochs of the whole run."""
        return self.settings.train.outer_epochs * self.settings.train.inner_epochs

    @property
    def stage_epochs(self) -> int:
        """Inner epochs of a stage."""
        return self.settings.train.inner_epochs * self.settings.designer.every

    def spans_ahead(self) -> int:
        """Spans still to be read, for a progress bar; the episodes are known from their numbers."""
        return sum(len(lesson.spans) for done in range(self.done, self.total) for lesson in self._lessons(done))

    async def train(self) -> None:
        """All inner epochs that are left; then the run's bank is its best stage's."""
        self.evolution.begin(self.bank)
        if not self.done:
            self._save()  # what a run killed in its first inner epoch goes back to
        while self.done < self.total:
            outer, inner = divmod(self.done, self.settings.train.inner_epochs)
            began, before = time.monotonic(), metrics.begun(self.ledger.usage(), self.rows)
            if self.done and self.done % self.stage_epochs == 0 and not await self._next_stage():
                break
            skills_SD = await self._skill_vectors()
            episodes = await self._collect(outer, inner, skills_SD)
            stats = self._learn(episodes, outer, inner, skills_SD)
            self._observe(episodes)
            self.done += 1
            effort = metrics.Effort(before, self.ledger.usage(), time.monotonic() - began)
            row = metrics.row_of(outer, inner, self.bank, episodes, stats, effort)
            self.rows.append(row)
            self.rewards.append(row["episode_reward_mean"])
            files.append_line(self.run.metrics, row, durable=True)
            self._save()
            self.end_epoch()
            self.watcher.epoch(row)
        self._end_on_best()

    async def _next_stage(self) -> bool:
        """Between two stages: roll back if the last one lost, then the next one. False: there is no use in more.

        A stage that waits to be judged (proposed before a crash, or by ``memskill evolve``) is taken as it is.
        """
        if self.designer is not None:
            self._roll_back()
        stage = stages.pending(stages.read_all(self.run.stages), self.bank.stage) or await self._new_stage()
        if stage is not None:
            self.bank, self.window_start, self.rewards = stage.bank.copy(), self.done, []
        return stage is not None

    async def _new_stage(self) -> stages.Stage | None:
        if self.designer is None:
            return self.evolution.advance(self.bank)
        if why := self.evolution.exhausted():
            self.watcher.notice(f"stopping early: {why}")
            return None
        encoder = self.world.spaces.retrieval
        return await self.evolution.propose(self.designer, self.bank, self.pool, encoder, self.settings.seed)

    def _roll_back(self) -> None:
        """Go back to the best stage if another came after it: bank, statistics and hard cases, not the controller."""
        champion = stages.best(stages.read_all(self.run.stages))
        if champion is None or champion.number == self.bank.stage or champion.checkpoint is None:
            return
        self.watcher.notice(f"stage {self.bank.stage} was no better: back to stage {champion.number}")
        self.bank = champion.bank.copy()
        found = checkpoint.load_latest(self.run.checkpoints, self.watcher.notice, upto=champion.checkpoint)
        if found is not None:
            self.pool = HardCasePool.from_rows(self.settings.designer, found.state["hard_cases"])
        if found is None or found.done != champion.checkpoint:
            whose = f"of inner epoch {found.done}" if found is not None else "as they are now"
            self.watcher.notice(
                f"checkpoint {champion.checkpoint:06d} cannot be used: the hard cases are those {whose}"
            )

    def _observe(self, episodes: Sequence[Episode]) -> None:
        for episode in episodes:
            self.pool.observe(episode.answers, self.done, self.settings.reward.kind)
        self.pool.prune(self.done)

    async def _skill_vectors(self) -> torch.Tensor:
        return torch.from_numpy(await self.world.spaces.of_skills.aencode([s.description for s in self.bank.skills]))

    async def _collect(self, outer: int, inner: int, skills_SD: torch.Tensor) -> list[Episode]:
        """One batch of episodes, run together and returned in batch order."""
        standing = Standing(self.controller, self.bank, skills_SD, self.settings.train.top_k, self._exploration())
        tasks = []
        try:
            async with self.engine.crew(standing, Desk(self.watcher.span)) as crew, asyncio.TaskGroup() as group:
                for index, lesson in enumerate(self._lessons(self.done)):
                    seed = seed_from(self.settings.seed, outer, inner, index)
                    tasks.append(group.create_task(crew.run(attend, lesson, seed)))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    def _learn(self, episodes: Sequence[Episode], outer: int, inner: int, skills_SD: torch.Tensor) -> ppo.PPOStats:
        generator = torch.Generator().manual_seed(seed_from(self.settings.seed, "ppo", outer, inner))
        batch, new_S, device = ppo.Batch.of(episodes), self._exploration().new_S, self.device
        with ppo.moved(device, self.controller, self.optimizer):
            stats = ppo.update(
                self.controller,
                self.optimizer,
                batch.to(device),
                skills_SD.to(device),
                new_S.to(device),
                self.settings.ppo,
                generator,
            )
        # A skill is credited with the whole episode's reward: a step's own share says more about its place than
        # about its skills.
        used = [(step.choice.skills, episode.reward) for episode in episodes for step in episode.steps]
        self.bank.record_batch([skills for skills, _ in used], [reward for _, reward in used])
        if self.done + 1 - self.window_start >= self.settings.controller.new_skill_epochs:
            self.bank.clear_new()
        return stats

    def _exploration(self) -> Exploration:
        """The window in which skills new to the bank are favoured, fading linearly to nothing."""
        how = self.settings.controller
        fade = max(0.0, 1 - (self.done - self.window_start) / how.new_skill_epochs)
        new_S = torch.tensor([name in self.bank.new for name in self.bank.names])
        return Exploration(new_S, how.p_min, fade)

    def _save(self) -> None:
        state = {
            "dim": self.world.spaces.state.dim,
            "skill_dim": self.world.spaces.of_skills.dim,
            "hidden": self.settings.controller.hidden,
            "window_start": self.window_start,
            "rewards": self.rewards,
            "hard_cases": self.pool.rows(),
        }
        weights, adam = self.controller.state_dict(), checkpoint.optimizer_tensors(self.optimizer)
        contents = checkpoint.Checkpoint(self.done, weights, adam, self.bank, state)
        checkpoint.save(self.run.checkpoints, contents)
        self.publish()

    def publish(self) -> None:
        """What the checkpoint knows, for readers of the run."""
        files.write_atomic(self.run.hard_cases, b"".join(map(files.to_json, self.pool.rows())))
        self.bank.save(self.run.skill_bank)

    def end_epoch(self) -> None:
        """After a checkpoint: judge the stage if it is at its end, and drop checkpoints that nobody needs any more.

        A run that was killed before this does it when it is resumed.
        """
        at_end = self.done % self.stage_epochs == 0 or self.done == self.total
        if at_end or self.best is None:
            known = stages.read_all(self.run.stages)
            judged = any(_is_judged(stage, self.done) for stage in known if stage.number == self.bank.stage)
            if at_end and self.rewards and not judged:
                self.evolution.close(self.bank, self.rewards, self.done)
                known = stages.read_all(self.run.stages)
            champion = stages.best(known)
            self.best = champion.checkpoint if champion else None
        checkpoint.prune(self.run.checkpoints, self.settings.train.keep_checkpoints, self.best, done=self.done)

    def _end_on_best(self) -> None:
        """A run ends on its best snapshot, statistics and all."""
        champion = stages.best(stages.read_all(self.run.stages))
        if champion is not None:
            champion.bank.save(self.run.skill_bank)

    def _lessons(self, done: int) -> Iterator[Lesson]:
        """The material of the inner epoch that comes after ``done`` others."""
        outer, inner = divmod(done, self.settings.train.inner_epochs)
        return (self.curriculum.lesson(outer, inner, index) for index in range(self.settings.train.batch_size))


def _is_judged(stage: stages.Stage, done: int) -> bool:
    """Whether ``stage`` was judged by an evaluation, or by its training up to now.

    One that ended early, because the run did, is judged again at its real end when the run is made longer.
    """
    return stage.judged and (stage.reward is None or stage.checkpoint == done)
