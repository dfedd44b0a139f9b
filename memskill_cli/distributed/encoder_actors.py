"""Texts encoded by the actors of a Ray cluster: on its GPUs, or on each of its nodes where there are none."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memskill_cli.distributed.worker_pool import PATIENCE, SHARE, TELL_AFTER, one_line
from memskill_cli.errors import EncoderError, MemskillError
from memskill_cli.memory.encoder_models import Encoder
from memskill_cli.memory.encoder_specs import SHORT, plan
from memskill_cli.types import Matrix, Side

_TRIES = 3  # times in a row that all hosts are lost


class Hosts:
    """``count`` actors, each of which may load any encoder, on ``gpus`` GPUs (0: on CPUs).

    A host that is lost leaves its part to the others; when none is left, all are asked for anew. ``notice`` is told
    when the cluster lets us wait. Safe to use from several threads.
    """

    def __init__(self, count: int, gpus: int, notice: Callable[[str], None]) -> None:
        import ray

        share = min(1.0, 1 / math.ceil(count / gpus)) if gpus else 0.0
        actor = ray.remote(num_cpus=SHARE, num_gpus=share, max_restarts=0)(EncoderHost)
        self._kind = actor.options(scheduling_strategy="SPREAD")
        self._wanted, self._notice = count, notice
        self._turns = itertools.count()
        self._lock = threading.Lock()
        self.hosts: list[Any] = []
        self._fill()

    def encode(self, spec: str, device: str, texts: Sequence[str], side: Side) -> Matrix:
        """As :meth:`Encoder.encode`. EncoderError: nobody is left to do it."""
        for _ in range(_TRIES):
            self._fill()
            while hosts := list(self.hosts):
                first = next(self._turns)
                parts = np.array_split(np.arange(len(texts)), min(len(hosts), len(texts)))
                chosen = [hosts[(first + i) % len(hosts)] for i in range(len(parts))]
                asked = [
                    host.encode.remote(spec, device, [texts[i] for i in part], side)
                    for host, part in zip(chosen, parts, strict=True)
                ]
                rows = [self._result(host, promised) for host, promised in zip(chosen, asked, strict=True)]
                if all(row is not None for row in rows):
                    return np.concatenate(rows)
        raise EncoderError(
            "the encoders on the Ray cluster are lost again and again", hint="see ray status; have they memory enough?"
        )

    def facts(self, spec: str, device: str) -> tuple[int, int]:
        """Length of an encoder's vectors, and characters best encoded at once by all."""
        self._fill()
        for host in list(self.hosts):
            found = self._result(host, host.facts.remote(spec, device))
            if found is not None:
                return found[0], found[1] * self._wanted
        raise EncoderError("no encoder comes up on the Ray cluster", hint="see ray status")

    def _fill(self) -> None:
        with self._lock:
            if not self.hosts:
                self.hosts = [self._kind.remote() for _ in range(self._wanted)]

    def _drop(self, host: Any) -> None:
        with self._lock:
            if host not in self.hosts:
                return
            self.hosts.remove(host)
        self._notice("an encoder on the Ray cluster is lost; the others do its part")

    def _result(self, host: Any, promised: Any) -> Any:
        """What was promised, or None if its host is lost."""
        import ray

        waited = 0.0
        while True:
            try:
                return ray.get(promised, timeout=TELL_AFTER)
            except ray.exceptions.GetTimeoutError:
                waited += TELL_AFTER
                if waited >= PATIENCE:
                    raise EncoderError(
                        f"the Ray cluster has not encoded anything for {waited / 60:.0f} min",
                        hint="see ray status: is there room for an encoder?",
                    ) from None
                if waited == TELL_AFTER:
                    self._notice("waiting for an encoder on the Ray cluster: it loads its model, or has no room yet")
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, MemskillError):
                    raise error.cause from None
                raise EncoderError(f"encoding on the cluster failed: {one_line(error)}") from None
            except ray.exceptions.RayError:
                self._drop(host)
                return None


class RemoteEncoder:
    """The encoder of ``spec``, on all hosts."""

    def __init__(self, hosts: Hosts, spec: str, device: str) -> None:
        self._hosts, self._spec, self._device = hosts, absolute(spec), device
        self.dim, self.at_once = hosts.facts(self._spec, device)

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        return self._hosts.encode(self._spec, self._device, texts, side)


class EncoderHost:
    """Encoders in a process of their own (a Ray actor), each loaded when it is first needed."""

    def __init__(self) -> None:
        self._loaded: dict[str, Encoder] = {}

    def facts(self, spec: str, device: str) -> tuple[int, int]:
        encoder = self._encoder(spec, device)
        return encoder.dim, encoder.at_once

    def encode(self, spec: str, device: str, texts: Sequence[str], side: Side) -> Matrix:
        return self._encoder(spec, device).encode(texts, side)

    def _encoder(self, spec: str, device: str) -> Encoder:
        if spec not in self._loaded:
            self._loaded[spec] = plan(spec, device, None).load()
        return self._loaded[spec]


def absolute(spec: str) -> str:
    """``spec`` with its folders as they are called from anywhere."""
    whole = spec.removesuffix(SHORT)
    kind, colon, rest = whole.rpartition(":")
    folders = [str(Path(part).resolve()) if Path(part).is_dir() else part for part in rest.split(",")]
    return f"{kind}{colon}{','.join(folders)}{spec.removeprefix(whole)}"
