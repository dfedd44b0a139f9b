"""Connect to a Ray cluster, or start a local one for this process and stop it at the end."""

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
from memskill_cli.distributed.encoder_actors import ActorEncoder, EncoderActorPool
from memskill_cli.errors import RunError, UsageError
from memskill_cli.memory.encoder_models import Encoder
from memskill_cli.utils import process
from memskill_cli.utils.redaction import names_secret, strip_credentials

_log = logging.getLogger(__name__)
INSTALL = 'pip install "memskill[ray]"   (or --engine local, which gives the same results)'
_ALLOWED_SECRETS = ("HF_TOKEN", "RAY_")  # needed by encoders from the Hub and by Ray itself
_OBJECT_STORE_BYTES = 512 * 2**20  # shared memory of a local cluster; controllers and episodes are small


def check_installed() -> None:
    """Raise UsageError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray, which is not installed", hint=INSTALL)


class Cluster:
    """The cluster that this process is connected to."""

    def __init__(self, settings: RayConfig, notice: Callable[[str], None]) -> None:
        self._settings, self._notice = settings, notice

    @property
    def workers(self) -> int:
        """Number of worker processes: the setting, or one per CPU."""
        return self._settings.workers or max(1, self._resource("CPU"))

    def encoder(self, spec: str, device: str) -> Callable[[], Encoder]:
        """A function that loads the encoder ``spec`` on the cluster. Actors are created at once, before the loading."""
        actors = self._gpu_actors if device != "cpu" and self._resource("GPU") else self._cpu_actors
        return partial(ActorEncoder, actors, spec, device)

    @cached_property
    def _gpu_actors(self) -> EncoderActorPool:
        gpus = self._resource("GPU")
        return EncoderActorPool(self._settings.encoders or gpus, gpus, self._notice)

    @cached_property
    def _cpu_actors(self) -> EncoderActorPool:
        import ray

        nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
        return EncoderActorPool(self._settings.encoders or max(1, nodes), 0, self._notice)

    def _resource(self, name: str) -> int:
        import ray

        return int(ray.cluster_resources().get(name, 0))


@contextmanager
def connected(settings: RayConfig, notice: Callable[[str], None]) -> Iterator[Cluster]:
    """Connect to the cluster at ``settings.address`` (or RAY_ADDRESS), or start a local one.

    By default Ray handles signals, records the command line and passes the environment to its processes. Here this
    process keeps its signal handlers, the command line is hidden, and secrets stay in this process. Raises RunError if
    the cluster cannot be reached or does not start.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS") or None
    process.set_variable("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:  # the ports of a local cluster are open to the network, so clients need a token
        process.set_variable("RAY_AUTH_MODE", "token", replace=True)
        process.set_variable("RAY_AUTH_TOKEN", secrets.token_hex(32), replace=True)
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    with ExitStack() as stack:
        if address is None:
            folder = stack.enter_context(_temporary_folder())
            options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES, "_temp_dir": folder}
        else:
            notice(f"connecting to the Ray cluster at {address}")
            _check_reachable(address)
        with _quiet_ray():
            try:
                ray.init(address=address or "local", **options)
            except Exception as error:
                what = " ".join(str(error).split()) or type(error).__name__
                raise _unreachable(address, what) if address else RunError(f"Ray does not start: {what}") from None
        stack.callback(ray.shutdown)
        yield Cluster(settings, notice)


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """A folder for the files of a local cluster. ``cluster_reaper`` removes it and the cluster's processes.

    That also happens if this process is killed.
    """
    folder = tempfile.mkdtemp(prefix="memskill-ray-", dir="/tmp")  # a short path, because it contains sockets
    command = [sys.executable, cluster_reaper.__file__, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):  # noqa: S603 - ours
        yield folder


def _check_reachable(address: str) -> None:
    """Raise RunError if nothing listens at ``address``. Ray itself would retry for minutes."""
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
        hint="run memskill on a node of the cluster, and check ray status there; without an address, memskill starts a "
        "local cluster",
    )


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Keep Ray from handling signals, passing on secrets and printing. This replaces three functions of Ray 2.60."""
    import ray._private.utils
    import ray._private.worker

    process.silence("ray", logging.ERROR)
    worker, utils = ray._private.worker, ray._private.utils
    process.set_attribute(worker, "print_to_stdstream", _log_output)  # stdout is for results
    # The original sends our command line to the cluster.
    process.set_attribute(utils, "get_entrypoint_name", lambda: "memskill")
    process.set_attribute(utils, "set_sigterm_handler", lambda handler: None)  # keep our signal handlers
    hidden = {name: value for name, value in os.environ.items() if _is_secret(name, value)}
    for name in hidden:
        del os.environ[name]
    # Processes that Ray starts inherit the mask, so they survive when the terminal closes, as this process does.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.environ.update(hidden)


def _is_secret(name: str, value: str) -> bool:
    return (names_secret(name) or strip_credentials(value) != value) and not name.startswith(_ALLOWED_SECRETS)


def _log_output(output: dict[str, Any], **_: Any) -> None:
    _log.debug("%s", "\n".join(map(str, output["lines"])))
