"""Read and write skills as ``SKILL.md`` files of the agent-skills convention; also read the heading format.

Written: ``<folder>/<name>/SKILL.md``, YAML front matter with ``name`` (a–z, 0–9 and single hyphens, at most 64
characters), ``description`` and ``metadata`` (action, origin, and the name in the bank if it differs), then the body.
The heading format: ``# Title``, ``## Description``, other sections, ``Action type: INSERT only.``
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from memskill_cli.errors import SkillBankError
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.schema import read_text
from memskill_cli.skills.skill import ORIGINS, Skill, SkillStats, check_skill
from memskill_cli.types import Action
from memskill_cli.utils.files import write_atomic

MAX_FILE = 100_000
"""Largest skill file that is read, in bytes. A body may have a fifth of that."""
_MAX_FRONT = 8000  # characters; parsing nested YAML takes quadratic time
_MAX_NAME = 64
_NO_SKILLS = ("readme", "license", "licence", "agents", "claude", "gemini", "changelog", "contributing")
"""Names of Markdown files, in lower case, that folders of skills often have and that are no skills."""
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)(.*)\Z", re.DOTALL | re.MULTILINE)
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
_DESCRIPTION = re.compile(r"^## description[ \t]*\n(.*?)(?=^#|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_ACTION = re.compile(r"^[^\w\n]*action type\W{1,20}(insert|update|delete|noop)\b", re.MULTILINE | re.IGNORECASE)


def to_markdown(skill: Skill, folder_name: str | None = None) -> str:
    """The ``SKILL.md`` of a skill, without statistics and stages. ``folder_name`` replaces a name that is taken."""
    import yaml

    name = folder_name or convention_name(skill.name)
    metadata = {"action": skill.action.value, "origin": skill.origin}
    if name != skill.name:
        metadata["bank-name"] = skill.name
    front = {"name": name, "description": skill.description, "metadata": metadata}
    # YAML folds line breaks in plain text (more characters than "\n" count as such); in quoted text they are escaped.
    style = '"' if len(skill.description.splitlines()) > 1 else None
    text = yaml.safe_dump(front, allow_unicode=True, sort_keys=False, width=10**6, default_style=style)
    return f"---\n{text}---\n\n{skill.body}\n"


def from_markdown(text: str, where: str = "SKILL.md") -> Skill:
    """The skill of a ``SKILL.md`` text, with stage 0 and empty statistics.

    Raises SkillBankError if name, description or action type is missing or invalid.
    """
    text = text.replace("\r\n", "\n").removeprefix("\ufeff")
    front = _FRONT.match(text)
    try:
        skill = _from_front_matter(front[1], front[2]) if front else _from_headings(text)
        check_skill(skill)
    except SkillBankError as error:
        raise SkillBankError(f"{where}: {error.message}", hint=error.hint) from None
    return skill


def export(bank: SkillBank, folder: Path) -> list[Path]:
    """Write every skill as ``folder/<name>/SKILL.md``. Returns the files in order of name; other files are kept.

    Raises SkillBankError if a file is where a folder is needed.
    """
    folders = folder_names(bank.names)
    files = []
    for skill in bank.skills:
        files.append(folder / folders[skill.name] / "SKILL.md")
        try:
            write_atomic(files[-1], to_markdown(skill, folders[skill.name]))
        except (FileExistsError, NotADirectoryError) as error:
            raise SkillBankError(f"cannot export to {folder}: {error.filename} is a file") from None
    return files


def import_bank(path: Path) -> SkillBank:
    """A starting bank with the skills at ``path``: stage 0, empty statistics, origin "import".

    ``path`` is a bank's JSON file, a skill's Markdown file, or a folder with Markdown files, skill folders
    (``<name>/SKILL.md``) or both; README, LICENSE, AGENTS and similar files and hidden files are ignored. Raises
    SkillBankError, which names the file, if there are no skills, a file is invalid, two skills have one name, or there
    are more skills than the capacity.
    """
    if path.suffix.lower() == ".json" and path.is_file():
        stored = SkillBank.load(path)
        return SkillBank(map(_imported, stored.skills), capacity=stored.capacity)
    bank = SkillBank()
    for file in _skill_files(path):
        skill = _imported(from_markdown(read_text(file, MAX_FILE), str(file)))
        if len(bank) == bank.capacity:
            raise SkillBankError(f"{file}: one skill more than the bank can hold ({bank.capacity})")
        try:
            bank.add(skill)
        except SkillBankError as error:
            raise SkillBankError(f"{file}: {error.message}", hint="rename one of the two skills") from None
    return bank


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """A distinct folder name by the convention for each name; names that follow the convention are kept."""
    folders: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (convention_name(name) != name, name)):
        stem = folder = convention_name(name)
        number = 1
        while folder in folders.values():
            number += 1
            tail = f"-{number}"
            folder = stem[: _MAX_NAME - len(tail)].rstrip("-") + tail
        folders[name] = folder
    return folders


def convention_name(text: str) -> str:
    """``text`` reduced to a–z, 0–9 and single hyphens, at most 64 characters; "" if nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_MAX_NAME].rstrip("-")


def _skill_files(path: Path) -> list[Path]:
    """The Markdown files of skills at ``path``, sorted. Raises SkillBankError if there are none."""
    if path.is_file():
        return [path]
    found = [*path.glob("*.md"), *path.glob("*/SKILL.md")]
    files = sorted(
        file
        for file in found
        if file.is_file()
        and file.stem.lower() not in _NO_SKILLS
        and not file.relative_to(path).as_posix().startswith(".")
    )
    if not files:
        raise SkillBankError(
            f"{path}: {'no skills there' if path.exists() else 'no such file or folder'}",
            hint="give a bank's JSON file, a folder of <name>/SKILL.md or a folder of *.md, for example one written by "
            "memskill inspect-skills --export FOLDER",
        )
    return files


def _imported(skill: Skill) -> Skill:
    return replace(skill, origin="import", created_stage=0, modified_stage=0, stats=SkillStats())


def _from_front_matter(front: str, body: str) -> Skill:
    import yaml

    if len(front) > _MAX_FRONT:
        raise SkillBankError(f"the front matter has {len(front)} characters, at most {_MAX_FRONT} are read")
    try:
        if any(
            isinstance(token, yaml.AliasToken) for token in yaml.scan(front)
        ):  # ten nested aliases can expand to 10^9 values
            raise SkillBankError("the front matter has an alias (*name); aliases are not supported")
        fields = yaml.safe_load(front)
    # Others than YAMLError: a date such as 2026-99-99, or a tag that does not fit its value, such as "!!bool maybe".
    except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise SkillBankError(f"the front matter is not YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(fields, dict):
        raise SkillBankError("the front matter is not a list of keys and values")
    metadata = fields["metadata"] if isinstance(fields.get("metadata"), dict) else {}
    name = _text(metadata, "bank-name") if "bank-name" in metadata else _text(fields, "name")
    return _skill(name, _text(fields, "description"), body, metadata)


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise SkillBankError(f"the front matter has no text called {key}")
    return value


def _from_headings(text: str) -> Skill:
    title, description = _TITLE.search(text), _DESCRIPTION.search(text)
    if title is None or description is None:
        raise SkillBankError(
            "found neither front matter nor a '# Title' with a '## Description'",
            hint="begin the file with these lines: --- / name: … / description: … / metadata: {action: insert} / ---",
        )
    body = _DESCRIPTION.sub("", text.replace(title[0], "", 1), count=1)
    return _skill(convention_name(title[1]), " ".join(description[1].split()), body, {})


def _skill(name: str, description: str, body: str, metadata: dict[str, Any]) -> Skill:
    action, origin = metadata.get("action"), metadata.get("origin")
    if action is None and (found := _ACTION.search(body)):
        action = found[1].lower()
    if action not in tuple(Action):
        raise SkillBankError(
            f"its action type is {action and str(action)[:60]!r}, expected one of {', '.join(Action)}",
            hint="set it in the front matter: metadata: {action: insert}",
        )
    return Skill(name, description, body.strip(), Action(action), origin if origin in ORIGINS else "import")
