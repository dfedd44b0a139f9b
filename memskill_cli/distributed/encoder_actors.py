"""Encode texts with actors of a Ray cluster: on its GPUs, or on each node if there are no GPUs.

``ray.util.ActorPool`` does not replace lost actors.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memskill_cli.distributed.worker_pool import CPU_SHARE, GIVE_UP_AFTER, NOTICE_AFTER, one_line
from memskill_cli.errors import EncoderError, MemskillError
from memskill_cli.memory.encoder_models import Encoder
from memskill_cli.memory.encoder_specs import BFLOAT16_SUFFIX, resolve_encoder
from memskill_cli.types import EncoderSide, Matrix

_TRIES = 3  # attempts; each fails if all actors are lost


class EncoderActorPool:
    """``count`` actors on ``gpus`` GPUs (0: on CPUs). Each can load any encoder.

    The texts of a lost actor go to the others; if none is left, all are created again. ``notice`` gets a message about
    lost actors and long waits. Thread-safe.
    """

    def __init__(self, count: int, gpus: int, notice: Callable[[str], None]) -> None:
        import ray

        share = min(1.0, 1 / math.ceil(count / gpus)) if gpus else 0.0
        actor = ray.remote(num_cpus=CPU_SHARE, num_gpus=share, max_restarts=0)(EncoderActor)
        self._kind = actor.options(scheduling_strategy="SPREAD")
        self._wanted, self._notice = count, notice
        self._turns = itertools.count()
        self._lock = threading.Lock()
        self.actors: list[Any] = []
        self._fill()

    def encode(self, spec: str, device: str, texts: Sequence[str], side: EncoderSide) -> Matrix:
        """As :meth:`Encoder.encode`; shape (N, D). Raises EncoderError if all actors were lost several times."""
        for _ in range(_TRIES):
            self._fill()
            while actors := list(self.actors):
                first = next(self._turns)
                parts = np.array_split(np.arange(len(texts)), min(len(actors), len(texts)))
                chosen = [actors[(first + i) % len(actors)] for i in range(len(parts))]
                pending = [
                    actor.encode.remote(spec, device, [texts[i] for i in part], side)
                    for actor, part in zip(chosen, parts, strict=True)
                ]
                rows = [self._result(actor, reference) for actor, reference in zip(chosen, pending, strict=True)]
                if all(row is not None for row in rows):
                    return np.concatenate(rows)
        raise EncoderError(
            "all encoder actors on the Ray cluster were lost repeatedly", hint="check ray status and the nodes' memory"
        )

    def facts(self, spec: str, device: str) -> tuple[int, int]:
        """Dimension of an encoder, and the number of characters per batch for all actors together."""
        self._fill()
        for actor in list(self.actors):
            found = self._result(actor, actor.facts.remote(spec, device))
            if found is not None:
                return found[0], found[1] * self._wanted
        raise EncoderError("no encoder actor starts on the Ray cluster", hint="check ray status")

    def _fill(self) -> None:
        with self._lock:
            if not self.actors:
                self.actors = [self._kind.remote() for _ in range(self._wanted)]

    def _drop(self, actor: Any) -> None:
        with self._lock:
            if actor not in self.actors:
                return
            self.actors.remove(actor)
        self._notice("an encoder actor on the Ray cluster is lost; the other actors take over")

    def _result(self, actor: Any, reference: Any) -> Any:
        """The value of a Ray object reference, or None if its actor is lost. Raises EncoderError."""
        import ray

        waited = 0.0
        while True:
            try:
                return ray.get(reference, timeout=NOTICE_AFTER)
            except ray.exceptions.GetTimeoutError:
                waited += NOTICE_AFTER
                if waited >= GIVE_UP_AFTER:
                    raise EncoderError(
                        f"the Ray cluster has not encoded anything for {waited / 60:.0f} min",
                        hint="check ray status: are there free resources for an encoder?",
                    ) from None
                if waited == NOTICE_AFTER:
                    self._notice("waiting for an encoder on the Ray cluster: it loads its model, or resources are busy")
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, MemskillError):
                    raise error.cause from None
                raise EncoderError(f"encoding on the cluster failed: {one_line(error)}") from None
            except ray.exceptions.RayError:
                self._drop(actor)
                return None


class ActorEncoder:
    """The encoder ``spec`` on all actors of a pool."""

    def __init__(self, actors: EncoderActorPool, spec: str, device: str) -> None:
        self._actors, self._spec, self._device = actors, absolute(spec), device
        self.dim, self.batch_chars = actors.facts(self._spec, device)

    def encode(self, texts: Sequence[str], side: EncoderSide = "context") -> Matrix:
        return self._actors.encode(self._spec, self._device, texts, side)


class EncoderActor:
    """Runs as a Ray actor. Loads each encoder at its first use."""

    def __init__(self) -> None:
        self._loaded: dict[str, Encoder] = {}

    def facts(self, spec: str, device: str) -> tuple[int, int]:
        encoder = self._encoder(spec, device)
        return encoder.dim, encoder.batch_chars

    def encode(self, spec: str, device: str, texts: Sequence[str], side: EncoderSide) -> Matrix:
        return self._encoder(spec, device).encode(texts, side)

    def _encoder(self, spec: str, device: str) -> Encoder:
        if spec not in self._loaded:
            self._loaded[spec] = resolve_encoder(spec, device, None).load()
        return self._loaded[spec]


def absolute(spec: str) -> str:
    """``spec`` with absolute paths of its folders, because actors have another working directory."""
    whole = spec.removesuffix(BFLOAT16_SUFFIX)
    kind, colon, rest = whole.rpartition(":")
    folders = [str(Path(part).resolve()) if Path(part).is_dir() else part for part in rest.split(",")]
    return f"{kind}{colon}{','.join(folders)}{spec.removeprefix(whole)}"
