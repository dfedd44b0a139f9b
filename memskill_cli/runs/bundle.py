"""Bundles: what a run has learned, as a folder or zip file to share. No text of users, no optimizer, nothing pickled.

::

    bundle.json               format, encoders with their revisions, settings, scores, sha256 of the other files
    skills/<name>/SKILL.md    the skills, as the agent-skills convention has them
    controller.safetensors    the network that selects skills
    README.md                 what it was trained on, its scores, how to use it

A file is read only if ``bundle.json`` names it, its name is one of these, and its sha256 is the recorded one.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from safetensors.torch import save as save_tensors
from torch import Tensor

from memskill_cli.errors import CheckpointError, MemskillError, RunError
from memskill_cli.runs import checkpoint
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.markdown import MAX_FILE, folder_names, from_markdown, to_markdown
from memskill_cli.utils import files

FORMAT = 1
RECORD, CONTROLLER, CARD = "bundle.json", "controller.safetensors", "README.md"
MAX_CONTROLLER = 256 * 2**20
"""Largest controller that is read, in bytes; the published one has 3 MB."""
MAX_SKILLS = 1000
_SKILL = re.compile(r"skills/[a-z0-9-]{1,64}/SKILL\.md")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in a zip, so that equal bundles are equal files


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked. ``record`` is the content of ``bundle.json``; ``digest`` identifies all."""

    record: Mapping[str, Any]
    bank: SkillBank
    controller: dict[str, Tensor]
    digest: str

    @property
    def name(self) -> str:
        return str(self.record["name"])

    @property
    def size(self) -> dict[str, int]:
        """``dim``, ``skill_dim`` and ``hidden`` of the controller, and ``inner_epochs`` that it was trained for."""
        return {name: int(self.record["controller"][name]) for name in _SIZE}


_DAMAGED = (
    *(OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError),  # of reading a zip file
    *(KeyError, TypeError, ValueError, OverflowError),  # of the content
)
_SIZE = ("dim", "skill_dim", "hidden", "inner_epochs")


def is_bundle(path: Path) -> bool:
    """Whether ``path`` may be a bundle: a folder with ``bundle.json``, or a zip file."""
    return (path / RECORD).is_file() or (path.suffix == ".zip" and path.is_file())


def contents(record: Mapping[str, Any], found: checkpoint.Checkpoint, card: str) -> dict[str, bytes]:
    """The files of a bundle by name. ``record`` is ``bundle.json`` without sizes and digests."""
    folders = folder_names(found.bank.names)
    made = {
        f"skills/{folders[skill.name]}/SKILL.md": to_markdown(skill, folders[skill.name]).encode()
        for skill in found.bank.skills
    }
    made |= {CONTROLLER: save_tensors(found.controller), CARD: card.encode()}
    size = (found.state["dim"], found.skill_dim, found.state["hidden"], found.num_updates)
    table = {
        "format": FORMAT,
        **record,
        "capacity": found.bank.capacity,
        "controller": dict(zip(_SIZE, size, strict=True)),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(made.items())},
    }
    return {RECORD: files.to_json(table, pretty=True), **made}


def write(target: Path, made: Mapping[str, bytes]) -> None:
    """Write the files to a new folder, or to a zip file if the name of ``target`` ends in ``.zip``.

    Raises RunError if ``target`` exists.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RunError(f"{target} already exists", hint="choose another name, or remove it first")
    if target.suffix == ".zip":
        return _write_zip(target, made)
    for name, content in made.items():
        if name != RECORD:
            files.write_atomic(target / name, content)
    return files.write_atomic(target / RECORD, made[RECORD])  # last: without it there is no bundle


def _write_zip(target: Path, made: Mapping[str, bytes]) -> None:
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for name, content in sorted(made.items()):
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path) -> Bundle:
    """The bundle at ``path``, a folder or a zip file. Raises RunError, with the file, if it is not a valid bundle."""
    try:
        if path.is_dir():
            return _parse(path, lambda name, limit: _from_folder(path / name, limit))
        with zipfile.ZipFile(path) as archive:
            return _parse(path, lambda name, limit: _from_zip(archive, name, limit))
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(f"{path}: not a bundle: {reason}", hint="make one: memskill export --run RUN DIR") from None


def _parse(path: Path, load: Callable[[str, int], bytes]) -> Bundle:
    content = load(RECORD, MAX_FILE)
    record = orjson.loads(content)
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise ValueError(f"{RECORD} has no format")
    if record["format"] > FORMAT:
        raise RunError(
            f"{path}: format {record['format']} is newer than this memskill supports ({FORMAT})",
            hint=checkpoint.UPGRADE,
        )
    digests = record["sha256"]
    names = [name for name in digests if name != CARD]
    if len(names) > MAX_SKILLS + 1 or not all(name == CONTROLLER or _SKILL.fullmatch(name) for name in names):
        raise ValueError(f"{RECORD} names files that a bundle does not have")
    loaded = {name: load(name, MAX_CONTROLLER if name == CONTROLLER else MAX_FILE) for name in names}
    for name, data in loaded.items():
        if hashlib.sha256(data).hexdigest() != digests[name]:
            raise ValueError(f"{name} does not match its sha256 in {RECORD}")
    return _checked(path, record, loaded, hashlib.sha256(content).hexdigest()[:12])


def _checked(path: Path, record: dict[str, Any], loaded: Mapping[str, bytes], digest: str) -> Bundle:
    for name in ("name", "dataset", "encoders", "settings", "controller"):
        if not isinstance(record[name], str if name in ("name", "dataset") else dict):
            raise TypeError(f"{name} in {RECORD} is {str(record[name])[:60]!r}")
    where, size = path / CONTROLLER, [int(record["controller"][name]) for name in _SIZE]
    try:
        skills = [
            from_markdown(data.decode(), f"{path / name}")
            for name, data in sorted(loaded.items())
            if name != CONTROLLER
        ]
        bank = SkillBank(skills, capacity=int(record["capacity"]))
        controller = checkpoint.controller_tensors(where, loaded[CONTROLLER], *size[:3])
    except CheckpointError as error:
        raise RunError(error.message, hint=error.hint) from None
    except MemskillError as error:
        raise RunError(f"{path}: {error.message}", hint=error.hint) from None
    return Bundle(record, bank, controller, digest)


def _from_folder(file: Path, limit: int) -> bytes:
    if not file.is_file():  # a link, as in the Hub's cache, is followed: its content must have the recorded digest
        raise ValueError(f"{file.name} is missing")
    if file.stat().st_size > limit:
        raise ValueError(f"{file.name} has more than {limit} bytes")
    return file.read_bytes()


def _from_zip(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{name} has more than {limit} bytes")
    return content
