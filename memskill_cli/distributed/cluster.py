"""A Ray cluster: one that is there, or one that this process starts for itself and takes down again."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

from memskill_cli.config import RayConfig
from memskill_cli.distributed import cluster_reaper
from memskill_cli.distributed.encoder_actors import Hosts, RemoteEncoder
from memskill_cli.errors import RunError, UsageError
from memskill_cli.memory.encoder_models import Encoder
from memskill_cli.utils.redaction import bare, names_secret

_log = logging.getLogger(__name__)
INSTALL = 'pip install "memskill[ray]"   (or --engine local, which gives the same results)'
_OF_OTHERS = ("HF_TOKEN", "RAY_")  # what encoders from the Hub, and Ray itself, cannot do without
_OBJECTS = 512 * 2**20  # bytes of shared memory for a cluster of our own: controllers and episodes are small


def require() -> None:
    """Raises UsageError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray, which is not installed", hint=INSTALL)


class Cluster:
    """A cluster that this process is connected to."""

    def __init__(self, how: RayConfig, notice: Callable[[str], None]) -> None:
        self._how, self._notice = how, notice

    @property
    def workers(self) -> int:
        """How many processes are to read and ask traces."""
        return self._how.workers or max(1, self._resource("CPU"))

    def encoder(self, spec: str, device: str) -> Callable[[], Encoder]:
        """What loads the encoder of ``spec`` on the cluster. Its room there is taken now."""
        hosts = self._on_gpus if device != "cpu" and self._resource("GPU") else self._on_cpus
        return partial(RemoteEncoder, hosts, spec, device)

    @cached_property
    def _on_gpus(self) -> Hosts:
        gpus = self._resource("GPU")
        return Hosts(self._how.encoders or gpus, gpus, self._notice)

    @cached_property
    def _on_cpus(self) -> Hosts:
        import ray

        nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
        return Hosts(self._how.encoders or max(1, nodes), 0, self._notice)

    def _resource(self, name: str) -> int:
        import ray

        return int(ray.cluster_resources().get(name, 0))


@contextmanager
def connected(how: RayConfig, notice: Callable[[str], None]) -> Iterator[Cluster]:
    """Connect to the cluster at ``how.address`` (or RAY_ADDRESS), or start one of this machine's own.

    Ray takes over signals, writes the command line down and gives its processes our environment; here signals stay
    ours, the command line is not told, and secrets stay in this process. RunError: there is no such cluster.
    """
    address = how.address or os.environ.get("RAY_ADDRESS") or None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:  # its ports are open to the network: whoever speaks to our own cluster must know this
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

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
                what = " ".join(str(error).split()) or type(error).__name__
                raise _unreachable(address, what) if address else RunError(f"Ray does not start: {what}") from None
        stack.callback(ray.shutdown)
        yield Cluster(how, notice)


@contextmanager
def _folder() -> Iterator[str]:
    """Where a cluster of our own keeps its files; however we end, nothing of it is left."""
    folder = tempfile.mkdtemp(prefix="memskill-ray-", dir="/tmp")  # short, since sockets are in it
    command = [sys.executable, cluster_reaper.__file__, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):  # noqa: S603 - ours
        yield folder


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
        hint="type the command on one of its nodes, and see ray status there; without an address one is started here",
    )


@contextmanager
def _discreet() -> Iterator[None]:
    """What Ray would take over, pass on or say. (Three functions of 2.60 have to be replaced for that.)"""
    import ray._private.utils
    import ray._private.worker

    logging.getLogger("ray").setLevel(logging.ERROR)
    ray._private.worker.print_to_stdstream = _note  # stdout is for results
    ray._private.utils.get_entrypoint_name = lambda: "memskill"  # it would tell the cluster our command line
    ray._private.utils.set_sigterm_handler = lambda handler: None  # signals stay ours
    hidden = {name: value for name, value in os.environ.items() if _is_secret(name, value)}
    for name in hidden:
        del os.environ[name]
    # What it starts is to live on when our terminal closes, as long as we do.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.environ.update(hidden)


def _is_secret(name: str, value: str) -> bool:
    return (names_secret(name) or bare(value) != value) and not name.startswith(_OF_OTHERS)


def _note(said: dict[str, Any], **_: Any) -> None:
    _log.debug("%s", "\n".join(map(str, said["lines"])))
