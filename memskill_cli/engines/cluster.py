"""A Ray cluster: one that is there, or one that this process starts for itself and takes down again."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from memskill_cli.config import RayConfig
from memskill_cli.engines import warden
from memskill_cli.errors import EncoderError, MemskillError, RunError, UsageError
from memskill_cli.memory.encoder_models import Encoder
from memskill_cli.memory.encoder_specs import plan
from memskill_cli.records import Matrix, Side
from memskill_cli.redaction import names_secret
from memskill_cli.stopping import SIGNALS

_log = logging.getLogger(__name__)
INSTALL = 'pip install "memskill[ray]"'
SHARE = 0.25
"""Of a CPU, what an actor asks for: they mostly wait, and when a node is lost there must be room for them on others."""
_OF_OTHERS = ("HF_TOKEN", "RAY_")  # what encoders from the Hub, and Ray itself, cannot do without
_OBJECTS = 512 * 2**20  # bytes of shared memory for a cluster of our own: controllers and episodes are small


class Cluster:
    """A cluster that this process is connected to."""

    def __init__(self, how: RayConfig) -> None:
        self._how = how

    @cached_property
    def gpus(self) -> int:
        return int(self._resource("GPU"))

    @property
    def cpus(self) -> int:
        return max(1, int(self._resource("CPU")))

    def _resource(self, name: str) -> float:
        import ray

        return float(ray.cluster_resources().get(name, 0.0))

    def encoder(self, spec: str, device: str) -> Encoder:
        """The encoder of ``spec`` on as many actors as there are GPUs, or nodes with a CPU where there are none."""
        import ray

        nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
        gpus = self.gpus if device != "cpu" else 0
        count = self._how.encoders or gpus or max(1, nodes)
        return EncoderPool(spec, device, count, gpus=min(1.0, gpus / count))


@contextmanager
def connected(how: RayConfig, notice: Callable[[str], None]) -> Iterator[Cluster]:
    """Connect to the cluster at ``how.address`` (or RAY_ADDRESS), or start one of this machine's own.

    Ray takes over signals, writes the command line down and gives its processes our environment; here signals stay
    ours, the command line is not told, and secrets stay in this process. UsageError: Ray is not installed. RunError:
    there is no such cluster.
    """
    address = how.address or os.environ.get("RAY_ADDRESS") or None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:  # its ports are open to the network: whoever speaks to our own cluster must know this
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray, which is not installed", hint=INSTALL) from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    with ExitStack() as stack:
        if address is None:
            folder = stack.enter_context(_folder())
            options |= {"include_dashboard": False, "object_store_memory": _OBJECTS, "_temp_dir": folder}
        else:
            notice(f"connecting to the Ray cluster at {address}")
            _knock(address)
        with _discreet():
            try:
                ray.init(address=address or "local", **options)
            except Exception as error:
                what = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise _unreachable(address, what) if address else RunError(f"Ray does not start: {what}") from None
        stack.callback(ray.shutdown)
        yield Cluster(how)


@contextmanager
def _folder() -> Iterator[str]:
    """Where a cluster of our own keeps its files; however we end, nothing of it is left."""
    folder = tempfile.mkdtemp(prefix="memskill-ray-", dir="/tmp")  # short, since sockets are in it
    command = [sys.executable, warden.__file__, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):  # noqa: S603 - ours
        os.environ[warden.MARK] = folder
        try:
            yield folder
        finally:
            del os.environ[warden.MARK]


def _knock(address: str) -> None:
    """Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise _unreachable(address, str(error)) from None


def _unreachable(address: str, why: str) -> RunError:
    return RunError(
        f"the Ray cluster at {address} cannot be reached: {why}",
        hint="see ray status; --ray-address HOST:PORT is another cluster, without it one is started here",
    )


@contextmanager
def _discreet() -> Iterator[None]:
    """What Ray would take over, pass on or say. (Two functions of 2.60 have to be replaced for that.)"""
    import ray._private.utils
    import ray._private.worker

    logging.getLogger("ray").setLevel(logging.ERROR)
    ray._private.worker.print_to_stdstream = _note  # stdout is for results
    ray._private.utils.get_entrypoint_name = lambda: "memskill"  # it would tell the cluster our command line
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    hidden = {name: os.environ[name] for name in os.environ if names_secret(name) and not name.startswith(_OF_OTHERS)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _note(said: dict[str, Any], **_: Any) -> None:
    _log.debug("%s", "\n".join(map(str, said["lines"])))


class EncoderPool:
    """One encoder on several actors, each with a part of the texts. An actor that is lost is started again."""

    def __init__(self, spec: str, device: str, count: int, gpus: float) -> None:
        import ray

        host = ray.remote(num_cpus=SHARE, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(EncoderHost)
        self._hosts = [host.options(scheduling_strategy="SPREAD").remote(spec, device) for _ in range(count)]
        self._turn = 0
        self.dim, at_once = self._get([self._hosts[0].facts.remote()])[0]
        self.at_once = at_once * count

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        parts = np.array_split(np.arange(len(texts)), min(len(self._hosts), len(texts)))
        hosts = [self._hosts[(self._turn + i) % len(self._hosts)] for i in range(len(parts))]
        self._turn += len(parts)
        return np.concatenate(
            self._get(
                [host.encode.remote([texts[i] for i in part], side) for host, part in zip(hosts, parts, strict=True)]
            )
        )

    def _get(self, promised: list[Any]) -> list[Any]:
        import ray

        try:
            results: list[Any] = ray.get(promised)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MemskillError):
                raise error.cause from None
            raise EncoderError(f"encoding on the cluster failed: {_last_line(error)}") from None
        except ray.exceptions.RayError as error:
            raise EncoderError(f"the cluster does not encode any more: {_last_line(error)}") from None
        return results


class EncoderHost:
    """An encoder in a process of its own (a Ray actor)."""

    def __init__(self, spec: str, device: str) -> None:
        self._spec, self._device = spec, device

    @cached_property
    def _encoder(self) -> Encoder:
        return plan(self._spec, self._device, None).load()

    def facts(self) -> tuple[int, int]:
        """Length of its vectors, and characters best encoded at once."""
        return self._encoder.dim, self._encoder.at_once

    def encode(self, texts: Sequence[str], side: Side) -> Matrix:
        return self._encoder.encode(texts, side)


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
