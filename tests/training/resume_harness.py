"""A small run that can be stopped at any moment of its file changes, and resumed in another folder.

It uses the small synthetic world. The designer first makes the ``insert`` skill worse, which is rolled back. When it is
shown this change as one that did not help, it adds a skill that helps.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.config import Config, load
from memskill_cli.llm.cache import ResponseCache
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.training.episode_sampler import QASampler
from memskill_cli.training.evolution import designer_of
from memskill_cli.training.held_out import HeldOut
from memskill_cli.training.resume import resume
from memskill_cli.training.trainer import TrainCallbacks, Trainer
from memskill_cli.types import Query, Session, Trace, Turn
from memskill_cli.utils import files

from ..factories import llm_client, make_ledger, rollout_context
from ..toy_models import HARM, HELP, designed, read_or_answered

MODEL = "openai/gpt-4o-mini"
"""Its price is known, so that the ledger has something to count."""
OF_THE_MACHINE = {"seconds", "llm_calls", "cached_calls"}
"""Metrics of the attempt that completed an inner epoch."""


def reply(request: Request) -> str:
    if request.role != "designer":
        return read_or_answered(request)
    return designed(request, HELP if "BLUR" in request.messages[-1]["content"] else HARM)


def trace(who: str) -> Trace:
    facts = (("job", "baker"), ("allergy", "pollen"))
    turns = (Turn(who, f"{who}'s job is baker, early hours."), Turn(who, f"{who}'s allergy is pollen, no meadows."))
    queries = tuple(Query(f"{who}-{kind}", who, "1", f"What is the {kind} of {who}?", (v,)) for kind, v in facts)
    return Trace(who, "locomo", "train", (Session("s", "1 May 2025", turns),), queries)


TRACES = [trace(who) for who in ("Ada", "Bruno", "Chen")]


def settings(**overrides: Any) -> Config:
    chosen = {
        "train.outer_epochs": 3,
        "train.inner_epochs": 2,
        "train.batch_size": 2,
        "train.span_mode": "turn",
        "train.num_skills": 1,
        "controller.hidden": 4,
        "ppo.learning_rate": 0.003,
        "models.retries": 0,
        "designer.gate": "rewards",
        "memory.sources": False,  # the small world's answers read memories only
        **{f"models.{role}": MODEL for role in ("executor", "answer", "judge", "designer")},
    }
    return load(overrides={**chosen, **{name.replace("__", "."): value for name, value in overrides.items()}})


class Killed(BaseException):
    """Stands for a SIGKILL within one process."""


class Lives:
    """Runs of one experiment, with a common server and cache."""

    def __init__(
        self,
        folder: Path,
        server: MockLLMServer,
        encoder: str = "hashing",
        embed_skills: Callable[..., Any] | None = None,
        val: Sequence[Trace] = (),
        **overrides: Any,
    ) -> None:
        self.folder, self.server, self.encoder, self.settings = folder, server, encoder, settings(**overrides)
        self.embed_skills, self.val = embed_skills, val

    def begin(self, name: str) -> RunDir:
        return RunDir.create(self.folder, name, self.settings, "data")

    def live(self, run: RunDir, *, cache: str = "cache", told: list[str] | None = None) -> None:
        """Resume ``run`` until its end. ``cache`` names the cache of replies; ``told`` collects the notices."""
        asyncio.run(self._live(run, self.folder / cache, [] if told is None else told))

    async def _live(self, run: RunDir, cache: Path, told: list[str]) -> None:
        settings = self.settings
        ledger = make_ledger(run.usage, scope="train")
        with closing(ResponseCache(cache)) as replies, closing(load_encoder(self.encoder, cache_dir=None)) as encoder:
            llm = llm_client(
                self.server.url, base=settings.models, limits=settings.limits, keys=["k"], ledger=ledger, cache=replies
            )
            encoders = EncoderPair(encoder, encoder)
            if self.embed_skills:
                encoders = encoders._replace(skill=load_encoder("litellm:m", cache_dir=None, embed=self.embed_skills))
            context = rollout_context(llm, encoders, settings)
            zero = stages.path_of(run.stages, 0)
            bank = stages.read(zero).bank if zero.exists() else seed_bank(noop=False)
            trainer = Trainer(
                run,
                settings,
                context,
                ledger,
                QASampler(settings, TRACES),
                bank,
                designer_of(llm, settings) if settings.train.evolve else None,
                TrainCallbacks(notice=told.append),
                held_out=HeldOut(settings, self.val) if self.val else None,
            )
            try:
                resume(trainer)
                await trainer.train()
            finally:
                await llm.aclose()


def _without_run(file: Path) -> bytes:
    """The content of a file of a checkpoint without the id of its run, which is random."""
    if file.name != "checkpoint.json":
        return file.read_bytes()
    return json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "run"}).encode()


def outcome(run: RunDir) -> dict[str, Any]:
    """Everything that must be bit-identical for every run, interrupted or not.

    Temporary files of a killed process are ignored: ``files.sweep`` deletes them when they are old enough.
    """
    found: dict[str, Any] = {
        str(file.relative_to(run.path)): hashlib.sha256(_without_run(file)).hexdigest()
        for folder in (run.checkpoints, run.stages)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.endswith(".tmp")
    }
    found["metrics"] = [
        {name: value for name, value in row.items() if name not in OF_THE_MACHINE}
        for row in files.read_jsonl(run.metrics)
    ]
    found["steps"] = [{**json.loads(line), "seconds": 0} for line in run.steps.read_text().splitlines()]
    found["lines"] = run.metrics.read_bytes().count(b"\n")
    found["bank"], found["hard cases"] = run.skill_bank.read_bytes(), run.hard_cases.read_bytes()
    return found


@contextmanager
def filmed(run: RunDir, folder: Path) -> Iterator[list[Path]]:
    """Copies of the run as a kill would leave it, one for every moment at which a file has changed.

    The moments are just before and after each rename, deletion, fsync and appended line of metrics, and in the middle
    of such a line.
    """
    pictures: list[Path] = []

    def take() -> None:
        picture = folder / f"{len(pictures):04d}"
        shutil.copytree(run.path, picture / run.name, copy_function=_frozen, ignore=shutil.ignore_patterns(".lock"))
        pictures.append(picture / run.name)

    def around(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if real is not os.fsync and not _of(run, arguments[0], more):
                return real(*arguments, **more)
            take()
            done = real(*arguments, **more)
            take()
            return done

        return call

    def append(path: Path, value: Any, *, real: Callable[..., Any] = files.append_line, **more: Any) -> None:
        if path != run.metrics:
            return real(path, value, **more)
        take()
        whole = path.read_bytes()
        path.write_bytes(whole + files.to_json(value)[:40])
        take()
        path.write_bytes(whole)
        real(path, value, **more)
        return take()

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "fsync", "unlink", "rmdir"):
            patch.setattr(os, name, around(getattr(os, name)))
        patch.setattr(files, "append_line", append)
        yield pictures


def _of(run: RunDir, path: Any, more: dict[str, Any]) -> bool:
    return "dir_fd" in more or str(path).startswith(str(run.path))


def _frozen(source: str, goal: str) -> None:
    """Copy files that are still being written or that grow. A hard link is enough for files that are only replaced."""
    if source.endswith((".tmp", ".jsonl")) or ".tmp" in Path(source).parent.name:
        shutil.copyfile(source, goal)
    else:
        os.link(source, goal)


def restored(picture: Path, folder: Path) -> RunDir:
    """The run as in one of the copies, in a new folder."""
    shutil.copytree(picture, folder / picture.name)
    return RunDir(folder / picture.name)
