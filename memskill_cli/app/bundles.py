"""Make a bundle of a run, share it on the Hugging Face Hub, and use a bundle where a run is expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from memskill_cli import __version__
from memskill_cli.app.evaluate import best_checkpoint
from memskill_cli.app.import_run import finished_run
from memskill_cli.app.runtime import never_called
from memskill_cli.config import Config, load, setting_names, to_dict
from memskill_cli.datasets.hub import HUB, pull_repository, push_folder
from memskill_cli.errors import EncoderError, RunError, UsageError
from memskill_cli.memory.encoder_specs import resolve_encoder
from memskill_cli.runs import bundle, checkpoint
from memskill_cli.runs.bundle import Bundle
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages

Notice = Callable[[str], None]
SPANS = ("span_mode", "chunk_size", "chunk_overlap", "num_skills")
"""Settings of the sections ``train`` and ``eval`` that a bundle records: how spans were cut, and skills for each."""
LOCAL = ("memory.server", "encoders.device")
"""Settings of the sections that a bundle records which concern one machine only."""
_SCORES = ("dataset", "split", "queries", "f1", "judge", "ci95", "data_digest")
_FILES = (bundle.RECORD, bundle.CONTROLLER, bundle.CARD, "skills/*/SKILL.md")


def bundle_of(run: RunDir, notice: Notice) -> dict[str, bytes]:
    """The files of a bundle of the run's best stage. Raises RunError if the run has no usable checkpoint."""
    found, settings, manifest = best_checkpoint(run, notice), run.settings(), run.manifest()
    record: dict[str, Any] = {
        "memskill": __version__,
        "name": run.name,
        "created": manifest.created,  # of the run, so that the same export is the same bundle
        "dataset": manifest.dataset,
        "data_digest": manifest.data_digest,
        "executor": settings.models.executor,
        "encoders": _encoders(settings),
        "settings": _settings(settings),
        "scores": _scores(run, f"{found.num_updates:06d}"),
    }
    return bundle.contents(record, found, _card(record, found))


def run_of(runs_dir: Path, name: str | None, data_dir: Path, notice: Notice) -> str | None:
    """The name of the run that ``name`` means. A bundle (a path, or ``hf://owner/name``) is made a run first.

    The run is named after the bundle and its digest, so it is made once. Raises RunError for an invalid bundle,
    DownloadError if it cannot be downloaded, EncoderError if its encoder is another one here.
    """
    if name is None or (runs_dir / name / "run.json").is_file():
        return name
    path = pull_repository(name, _FILES) if name.startswith(HUB) else Path(name).expanduser()
    if not name.startswith(HUB) and not bundle.is_bundle(path):
        return name
    found = bundle.read(path)
    own = f"{found.name[:80]}-{found.digest[:8]}"
    if not (runs_dir / own / "run.json").is_file():
        settings = _restored(found)
        _check_encoders(found, settings, path)
        with suppress(RunError):  # another process has just made it: then it is there
            _make_run(runs_dir, own, found, settings, data_dir)
        RunDir.open(runs_dir / own)
        notice(f"{name} is now the run {own} in {runs_dir}")
    return own


def push(folder: Path, repository: str) -> str:
    """Upload a bundle's folder to ``hf://owner/name``; a new repository is private. Returns the address.

    Raises RunError if it is not a bundle, DownloadError if the Hub refuses it or cannot be reached.
    """
    bundle.read(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="push the folder, not the zip file")
    return push_folder(folder, repository, _FILES)


def pull(repository: str, target: Path) -> Bundle:
    """Download a bundle from ``hf://owner/name`` to a new folder or zip file. Its digests are checked first."""
    folder = pull_repository(repository, _FILES)
    found = bundle.read(folder)
    names = [bundle.RECORD, *found.record["sha256"]]
    bundle.write(target, {name: (folder / name).read_bytes() for name in names})
    return found


def _encoders(settings: Config) -> dict[str, dict[str, str]]:
    """By role, the encoder as in settings, and its identity: name and revision, or a digest of a folder's files."""
    roles = {"state": settings.encoders.state, "skill": settings.encoders.skill or settings.encoders.state}
    return {role: {"encoder": _portable(spec), "identity": _identity(spec)} for role, spec in roles.items()}


def _portable(spec: str) -> str:
    """``spec``; of a folder on this machine only its name."""
    return Path(spec).name if Path(spec).is_dir() else spec


def _identity(spec: str) -> str:
    return resolve_encoder(spec, "auto", never_called).name


def _settings(settings: Config) -> dict[str, Any]:
    """By dotted name, the settings of encoders, memory and spans."""
    table = to_dict(settings)
    sections = [(name, table[name]) for name in ("encoders", "memory")]
    sections += [(name, {inner: table[name][inner] for inner in SPANS}) for name in ("train", "eval")]
    found = {f"{section}.{name}": value for section, part in sections for name, value in part.items()}
    return {
        name: _portable(value) if name.startswith("encoders.") else value
        for name, value in found.items()
        if name not in LOCAL
    }


def _scores(run: RunDir, checkpoint_name: str) -> list[dict[str, Any]]:
    """The scores of this checkpoint in the run's evaluations."""
    found = []
    for file in sorted(run.evals.glob("*/summary.json")):
        with suppress(OSError, orjson.JSONDecodeError, AttributeError):
            row = orjson.loads(file.read_bytes())
            if (row.get("method"), row.get("checkpoint")) == ("memskill", checkpoint_name):
                found.append({name: row[name] for name in _SCORES if name in row})
    return found


def _restored(found: Bundle) -> Config:
    """The settings of a run made from a bundle. Settings that this version does not know are left out."""
    known = set(setting_names())
    chosen = {name: value for name, value in found.record["settings"].items() if name in known and name not in LOCAL}
    settings = load(overrides={"dataset": found.record["dataset"], **chosen})
    return replace(
        settings,
        train=replace(settings.train, outer_epochs=1, inner_epochs=max(1, found.size["inner_epochs"])),
        controller=replace(settings.controller, hidden=found.size["hidden"]),
        designer=replace(settings.designer, capacity=found.bank.capacity),
    )


def _check_encoders(found: Bundle, settings: Config, path: Path) -> None:
    """Raise EncoderError if an encoder has another identity here: its vectors mean nothing to the controller."""
    specs = {"state": settings.encoders.state, "skill": settings.encoders.skill or settings.encoders.state}
    for role, spec in specs.items():
        wanted, here = found.record["encoders"][role]["identity"], _identity(spec)
        if here != wanted:
            raise EncoderError(
                f"{path}: its controller was trained with the encoder {wanted}, and {spec} is {here} here",
                hint="install that version of the encoder; the skills alone need none: "
                f"memskill eval --init-skills {path / 'skills'}",
            )


def _make_run(runs_dir: Path, name: str, found: Bundle, settings: Config, data_dir: Path) -> None:
    size = found.size
    done = size.pop("inner_epochs")
    state = {**size, "window_start": 0, "hard_cases": [], "rewards": []}
    what = f"from the bundle {found.name} (digest {found.digest})"
    stage = stages.Stage(0, found.bank, is_best=True, checkpoint=done, rationale=what, kept=True)

    contents = checkpoint.Checkpoint(done, found.controller, {}, found.bank, state)
    finished_run(runs_dir, name, settings, data_dir, contents, stage)


def _card(record: Mapping[str, Any], found: checkpoint.Checkpoint) -> str:
    """README.md: what the bundle was trained on, its scores with intervals, its skills, and how to use it."""
    lines = [
        "---\nlibrary_name: memskill\ntags: [memskill, agent-memory]\n---\n",
        f"# {record['name']}\n",
        "Memory skills for an LLM agent, and the network that selects them, made by memskill "
        f"{record['memskill']} (an implementation of arXiv 2602.02474).\n",
        f"- trained on: {record['dataset']} (digest {record['data_digest']}), {found.num_updates} inner epochs",
        f"- executor model: {record['executor']}",
        f"- encoder of states: {record['encoders']['state']['identity']}",
        f"- spans: {record['settings']['train.span_mode']}, {record['settings']['train.num_skills']} skills for each\n",
        "## Scores\n",
        *_score_lines(record["scores"]),
        "\n## Skills\n",
        *(f"- `{skill.name}` ({skill.action}): {' '.join(skill.description.split())}" for skill in found.bank.skills),
        "\n## Use\n",
        "```\nmemskill eval --dataset DATASET --run FOLDER\nmemskill train --dataset DATASET --init-from FOLDER\n"
        "memskill inspect-skills --run FOLDER\n```\n",
        "`FOLDER` is this folder, its zip file, or `hf://owner/name`. There is no text of users in it, except where a "
        "skill that a designer model wrote repeats some: read the skills before you share them.",
    ]
    return "\n".join(lines) + "\n"


def _score_lines(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    if not scores:
        return ["The run has no evaluation of this checkpoint."]
    rows = ["| dataset | split | questions | F1 × 100 (95 % interval) |", "|---|---|---|---|"]
    for row in scores:
        interval = (row.get("ci95") or {}).get("f1")
        f1 = "–" if row.get("f1") is None else f"{100 * row['f1']:.2f}"
        between = f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})" if interval else ""
        rows.append(f"| {row.get('dataset')} | {row.get('split')} | {row.get('queries')} | {f1}{between} |")
    return rows
