"""``make mutants``: mutation testing of the modules below.

mutmut makes thousands of small changes (mutants) to the modules, one at a time, and runs the tests of each changed
function. A mutant is killed if a test fails or runs too long. docs/mutants.md lists the mutants that may survive, with
the reason why there is no test. Any other survivor is an error, and so is a share of killed mutants below LEAST.

    make mutants            all modules
    make mutants M=ppo      one module

The work is done in a copy under ``.mutants/``.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from listed import LISTED, Mutant, listed
from prepare import prepared

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".mutants"
LEAST = 95.0
"""The percentage of all mutants that must be killed."""
_SURVIVED = (0, 5, 33)
"""Exit codes of pytest and mutmut: all tests passed, or no test ran."""
_UNTRIED = (None, 2)


@dataclass(frozen=True)
class Area:
    """Modules and their tests. Each area is one run of mutmut."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


AREAS = (
    Area(
        ("training/ppo", "agent/controller"),
        (
            "training/test_ppo.py",
            "training/test_ppo_reference.py",
            "training/test_ppo_details.py",
            "training/test_update_policy.py",
            "agent/test_controller.py",
        ),
    ),
    Area(("training/group_relative",), ("training/test_group_relative.py", "training/test_update_policy.py")),
    Area(
        (
            "rollout/rewards",
            "rollout/evidence_credit",
            "rollout/episode",
            "rollout/kinds",
            "rollout/question_answering",
            "rollout/env_tasks",
            "training/train_episode",
        ),
        (
            "rollout/test_rewards.py",
            "rollout/test_evidence_credit.py",
            "rollout/test_episode.py",
            "rollout/test_kinds.py",
            "scoring/test_plugin_errors.py",
            "training/test_parts.py",
        ),
    ),
    Area(
        (
            "training/episode_sampler",
            "training/curriculum",
            "training/query_sampling",
            "envs/trajectories",
            "utils/seeding",
        ),
        (
            "training/test_episode_sampler.py",
            "training/test_curriculum.py",
            "training/test_query_sampling.py",
            "envs/test_trajectories.py",
            "utils/test_seeding.py",
        ),
    ),
    Area(
        ("skills/stages", "training/evolution"),
        ("skills/test_stages.py", "training/test_evolution.py", "training/test_evolution_cycles.py"),
    ),
    Area(("agent/hard_cases",), ("agent/test_hard_cases.py",)),
    Area(
        ("agent/parsing", "agent/reply_blocks", "agent/reply_entry", "agent/reply_json", "llm/reasoning"),
        (
            "agent/test_parsing_actions.py",
            "agent/test_parsing.py",
            "agent/test_reply_blocks.py",
            "agent/test_reply_entry.py",
            "agent/test_reply_forms.py",
            "agent/test_reply_json.py",
            "llm/test_reasoning.py",
            "llm/test_reasoning_marks.py",
        ),
    ),
    Area(
        ("utils/text_metrics", "scoring/intervals", "scoring/judge", "scoring/verdict"),
        (
            "utils/test_text_metrics.py",
            "scoring/test_intervals.py",
            "scoring/test_judge.py",
            "scoring/test_judge_replies.py",
            "scoring/test_plugin_errors.py",
            "scoring/test_verdict.py",
        ),
    ),
    Area(
        ("evaluation/comparison", "evaluation/summary"), ("evaluation/test_comparison.py", "evaluation/test_summary.py")
    ),
    Area(("skills/skill", "skills/bank"), ("skills/test_skill.py", "skills/test_skill_bank.py")),
)


@dataclass(frozen=True)
class Result:
    mutant: Mutant
    killed: bool


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("module", nargs="?", default="", help="the last part of a module's name, for only that one")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options.add_argument("--work", type=Path, default=WORK)
    chosen = options.parse_args()
    areas = list(_chosen(chosen.module))
    if not areas:
        print(
            f"no module is called {chosen.module}; the modules are:", *sorted(m for area in AREAS for m in area.modules)
        )
        return 2
    results = [result for area in areas for result in _tried(area, chosen.work, chosen.jobs)]
    _print_table(results)
    return _verdict(results, whole=not chosen.module)


def _chosen(module: str) -> Iterable[Area]:
    for area in AREAS:
        wanted = tuple(name for name in area.modules if module in ("", name, name.rpartition("/")[2]))
        if wanted:
            yield Area(wanted, area.tests)


def _tried(area: Area, work: Path, jobs: int) -> list[Result]:
    """The result of each mutant of an area."""
    _copy(area, work)
    began = time.monotonic()
    print(", ".join(area.modules), end=": ", flush=True)
    command = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "run", f"--max-children={jobs}"]
    log = work / "log.txt"
    with log.open("w") as told:
        done = subprocess.run(command, cwd=work, env=_environ(work), stdout=told, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        print("mutmut failed", *log.read_text().splitlines()[-5:], "the tests without mutants:", sep="\n")
        _check(work, [f"tests/{test}" for test in area.tests if (work / "tests" / test).exists()])
        raise SystemExit(1)
    _check(work / "mutants", json.loads((work / "mutants" / "mutmut-stats.json").read_text())["duration_by_test"])
    found = [result for module in area.modules for result in _results(module, work)]
    print(f"{len(found)} mutants, {time.monotonic() - began:.0f} s", flush=True)
    return found


def _check(folder: Path, tests: Iterable[str]) -> None:
    """Exit if the tests ``tests`` fail without a mutant, because then every mutant would count as killed."""
    options = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not extra")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout[-6000:]}{done.stderr[-2000:]}")


def _environ(work: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEMSKILL_")}
    return {
        **kept,
        "PYTHONPATH": str(work / "tests" / "mutants"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the search for plugins takes as long as a fast test
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
    }


def _copy(area: Area, work: Path) -> None:
    """Copy the files that the tests need, prepare the modules, and write the settings of mutmut."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    without = shutil.ignore_patterns("__pycache__")
    for folder in ("memskill_cli", "tests", "data/samples"):
        shutil.copytree(ROOT / folder, work / folder, ignore=without)
    for file in ROOT.glob("data/longmemeval*"):
        shutil.copy(file, work / "data")
    for module in area.modules:
        path = work / _path(module)
        path.write_text(prepared(path.read_text()))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    settings["tool"]["mutmut"]["only_mutate"] = [_path(module) for module in area.modules]
    settings["tool"]["mutmut"]["pytest_add_cli_args_test_selection"] = [
        f"tests/{test}" for test in area.tests if (ROOT / "tests" / test).exists()
    ]
    (work / "pyproject.toml").write_text(tomli_w.dumps(settings))


def _path(module: str) -> str:
    return f"memskill_cli/{module}.py"


def _results(module: str, work: Path) -> list[Result]:
    path = work / "mutants" / _path(module)
    spans = json.loads(Path(f"{path}.spans").read_text())["spans"]
    lines = path.read_text().splitlines()
    found = []
    for key, code in json.loads(Path(f"{path}.meta").read_text())["exit_code_by_key"].items():
        name = key.rpartition(".")[2]
        mangled = name.rpartition("__mutmut_")[0]
        forms = []
        for generated in (f"{mangled}__mutmut_orig", name):
            start, end = spans[generated]
            forms.append([line.replace(generated, _function(mangled)) for line in lines[start - 1 : end]])
        if code in _UNTRIED:
            raise SystemExit(f"{key} was not tried: {code}")
        found.append(Result(Mutant(module, _function(mangled), _difference(*forms)), code not in _SURVIVED))
    return found


def _function(mangled: str) -> str:
    """The name of a function from mutmut's name: ``xǁSkillBankǁadd`` is SkillBank.add, ``x_update`` is update."""
    return mangled.removeprefix("x_") if mangled.startswith("x_") else ".".join(mangled.split("ǁ")[1:])


def _difference(before: Sequence[str], after: Sequence[str]) -> str:
    """The lines in which two versions of a function differ, without their indentation."""
    changed = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    return "\n".join(f"{line[0]} {line[1:].strip()}" for line in changed if line[0] in "+-")


def _print_table(results: Sequence[Result]) -> None:
    print(f"\n{'module':28} {'mutants':>8} {'killed':>8} {'survived':>9} {'share':>8}")
    for name in [*dict.fromkeys(result.mutant.module for result in results), "all"]:
        mine = [result.killed for result in results if name in ("all", result.mutant.module)]
        share = f"{100 * sum(mine) / len(mine):.1f} %"
        print(f"{name:28} {len(mine):8} {sum(mine):8} {len(mine) - sum(mine):9} {share:>8}")


def _verdict(results: Sequence[Result], *, whole: bool) -> int:
    survived = Counter(result.mutant for result in results if not result.killed)
    accepted = Counter(mutant for mutant, _ in listed(LISTED.read_text("utf-8")))
    modules = {result.mutant.module for result in results}
    new, gone = survived - accepted, Counter({m: n for m, n in (accepted - survived).items() if m.module in modules})
    for title, mutants in (("not in docs/mutants.md", new), ("in docs/mutants.md, but killed or gone", gone)):
        if mutants:
            print(f"\n{title}: {mutants.total()}")
            _print_mutants(mutants)
    share = 100 * sum(result.killed for result in results) / max(1, len(results))
    if whole and share < LEAST:
        print(f"\n{share:.1f} % are killed, but at least {LEAST} % must be")
    return 1 if new or (whole and share < LEAST) else 0


def _print_mutants(mutants: Counter[Mutant]) -> None:
    module = ""
    for mutant in sorted(mutants.elements()):
        if mutant.module != module:
            module = mutant.module
            print(f"\n## {module}\n")
        print(f"@@ {mutant.function}\n{mutant.change}")


if __name__ == "__main__":
    sys.exit(main())
