"""Checks the contents of a wheel and an sdist: ``python tools/check_release.py dist``, as ``make release`` does.

Exit status 1 and a line for each problem: a file that is needed and missing, or one that does not belong there.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[1]

PACKAGE = {
    "memskill_cli/__init__.py": 1,
    "memskill_cli/py.typed": 1,
    "memskill_cli/agent/prompts/*.md": 10,
    "memskill_cli/reports/templates/*.html.j2": 3,
    "memskill_cli/reports/templates/style.css": 1,
    "memskill_cli/skills/schema.json": 1,
    "memskill_cli/testing/server.py": 1,
}
"""Patterns of what both contain, and how many files at least."""
DATA = {
    "longmemeval_s_splits.json": 1,
    "longmemeval_s_ids.txt": 1,
    "samples/locomo_sample.json": 1,
    "samples/longmemeval_sample.json": 1,
    "samples/hotpotqa_sample.json": 1,
    "samples/conversations/conversations.jsonl": 1,
    "samples/conversations/questions.jsonl": 1,
    "samples/alfworld/LICENSE.alfworld": 1,
    "samples/alfworld/*/game.tw-pddl": 18,
    "samples/alfworld/*/traj_data.json": 18,
}
"""The same of the data that ship with the package."""
INFO = {"licenses/LICENSE": 1, "METADATA": 1, "entry_points.txt": 1}
SOURCE = {"pyproject.toml": 1, "README.md": 1, "LICENSE": 1, "CHANGELOG.md": 1, "constraints.txt": 1, "PKG-INFO": 1}

UNWANTED = ("*.pyc", "*/__pycache__/*", "*.log", "*.env", "*/.*")
"""Patterns of what neither may contain, in whatever folder; ``*`` is any text, ``/`` too."""


def sources() -> set[str]:
    """Every file of the package in the working tree, and the module beside it."""
    package = (f for f in (ROOT / "memskill_cli").rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    return {f.relative_to(ROOT).as_posix() for f in [*package, *ROOT.glob("memskill.py")]}


def wheel_problems(names: set[str]) -> list[str]:
    info = next((name.partition("/")[0] for name in names if ".dist-info/" in name), "*.dist-info")
    needed = {
        **PACKAGE,
        **{f"memskill_cli/_data/{pattern}": count for pattern, count in DATA.items()},
        **{f"{info}/{pattern}": count for pattern, count in INFO.items()},
    }
    return _problems(names, needed, ("memskill_cli/*", "memskill.py", f"{info}/*"))


def sdist_problems(names: set[str]) -> list[str]:
    """``names`` are without the folder that an sdist has around everything."""
    data = {f"data/{pattern}": count for pattern, count in DATA.items()}
    allowed = ("memskill_cli/*", "memskill.py", *data, "data/samples/alfworld/make.py", *SOURCE, ".gitignore")
    return _problems(names, {**PACKAGE, **data, **SOURCE}, allowed)


def _problems(names: set[str], needed: dict[str, int], allowed: tuple[str, ...]) -> list[str]:
    lines = []
    for pattern, least in needed.items():
        count = sum(fnmatchcase(name, pattern) for name in names)
        if count < least:
            lines.append(f"missing: {pattern} ({count} of at least {least})")
    lines += [f"missing: {name}" for name in sorted(sources() - names)]
    for name in sorted(names):
        if any(fnmatchcase(name, p) for p in UNWANTED) or not any(fnmatchcase(name, p) for p in allowed):
            lines.append(f"does not belong there: {name}")
    return lines


def check(folder: Path) -> list[str]:
    """The problems of the one wheel and the one sdist in ``folder``."""
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if (len(wheels), len(sdists)) != (1, 1):
        return [f"{folder}: {len(wheels)} wheels and {len(sdists)} sdists, not one of each"]
    with zipfile.ZipFile(wheels[0]) as wheel:
        lines = [f"{wheels[0].name}: {line}" for line in wheel_problems(set(wheel.namelist()))]
    with tarfile.open(sdists[0]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    return lines + [f"{sdists[0].name}: {line}" for line in sdist_problems(names)]


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "dist")
    problems = check(folder)
    for line in problems:
        print(line, file=sys.stderr)
    if not problems:
        print(f"{folder}: the wheel and the sdist contain what they should")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
