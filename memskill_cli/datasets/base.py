"""The interface of a dataset: how its files are read, how its queries are asked, and how answers are scored.

A dataset is one class. Its members have defaults, so a new question-answering dataset needs only a name and ``read``.
Register it with ``register_dataset`` (registry.py) in a file for ``--plugin``, or with an entry point of an installed
package. No other code compares names of datasets.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from memskill_cli.datasets.manifest import DatasetManifest
from memskill_cli.datasets.paper import PaperResults
from memskill_cli.errors import DataError, UsageError
from memskill_cli.types import Query, Trace
from memskill_cli.utils.registry import files_of
from memskill_cli.utils.text_metrics import token_f1

SPLITS = ("train", "val", "test")
ABSTENTION = "abstention"
"""Category of questions that cannot be answered; the right answer says that. They are judged, never scored by F1."""
SPAN_SETTINGS: Mapping[str, Any] = {"eval.span_mode": "fixed-length", "eval.chunk_size": 512, "eval.chunk_overlap": 64}
"""Settings of the spans of an evaluation, as published for all datasets."""

Note = Callable[[str], None]
"""Receives one sentence about an irregularity in the data and how it was handled."""


class PrepareOptions(NamedTuple):
    """The requested part of a dataset. Unsupported options are errors (:func:`reject_unsupported`)."""

    splits: tuple[str, ...] = ()
    """Names of splits; empty: the default of the dataset."""
    limit: int = 0
    """Maximum number of traces per split; 0: all."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file or folder of a benchmark, and the split that is prepared from it."""

    source: str
    """Its name in the manifest and in messages: URL, absolute path, or ``sample:<file name>``."""
    path: Path | None = None
    """The local path; None if it must be downloaded from ``url``."""
    url: str = ""
    """``http(s)://…``, or ``hf://datasets/<owner>/<name>/<file>`` on the Hugging Face Hub."""
    file_name: str = ""
    """The local name of a file that is downloaded from ``url``."""
    split: str = ""
    """The split that is prepared from it; "" if it has all splits of the benchmark."""
    limit: int = 0
    """Maximum number of traces; 0: all."""
    expected_sha256: str = ""
    """sha256 of the official file with which this version was tested; "" if there is none."""
    fingerprint: str = ""
    """Identifies the content of a folder, which is prepared again only if this differs. (For a file: its sha256.)"""
    flags: tuple[str, ...] = ()
    """Further options of ``prepare`` with which it is read, for messages."""


@dataclass(frozen=True, slots=True)
class ReaderCallbacks:
    """Callbacks of :meth:`Dataset.read`, and its folder for temporary files."""

    note: Note = lambda text: None
    """Called for irregularities that do not change the meaning of the data. The texts are stored in the manifest."""
    progress: Callable[[int, int | None], None] = lambda done, total: None
    """Called with (items done, items in total or None), also before the first trace is yielded."""
    scratch: Path = Path()
    """A folder beside the prepared data for temporary files such as journals; removed when preparation is complete."""
    read_progress: Callable[[int, int | None], None] = lambda done, total: None
    """Called with (records read, records in total or None) by readers that read everything before the first trace."""


class Dataset(ABC):
    """One dataset: how its files are read, how its queries are asked, and how answers are scored."""

    name: str
    """The name on the command line."""
    kind: Literal["qa", "env"] = "qa"
    """What queries are: questions to answer (``qa``), or tasks to play in a text environment (``env``)."""
    trains: bool = True
    """Whether the dataset is meant for training; if not, ``prepare`` suggests ``eval`` as the next command."""
    default_split: str = "test"
    """The split that is evaluated by default."""
    variants: tuple[str, ...] = ()
    """Values of ``prepare --variant``: ``train``, or a variant whose split is ``test-<variant>``."""
    settings: Mapping[str, Any] = {**SPAN_SETTINGS, "eval.num_skills": 7, "models.answer_max_tokens": 128}
    """Default settings by dotted name. If a run is evaluated on another dataset, that dataset's defaults apply."""
    presets: Mapping[str, Mapping[str, Any]] = {}
    """Additional settings of a preset for this dataset, by name of the preset."""
    prompt_style: Literal["conversational", "embodied"] = "conversational"
    """The topic of the prompts of executor and designer: conversations, or actions in an environment."""
    answer_prompt: str = "answer"
    """Instruction of the answering model: the name of a template of :mod:`memskill_cli.agent.prompts`, or the text."""
    has_abstention: bool = False
    """Whether there are questions of the category :data:`ABSTENTION`."""
    excluded_queries: str = ""
    """Which queries are not scored; shown in a notice."""
    environment: str = ""
    """For a dataset of tasks: the name of their environment (:mod:`memskill_cli.envs.environment`)."""
    training_notice: str = ""
    """A notice that is shown when a training on this dataset begins."""
    rewards: tuple[str, ...] = ()
    """Values of ``reward.kind`` that are allowed in training; (): all."""
    paper_results: PaperResults = PaperResults()
    """What the MemSkill paper reports on this dataset."""
    official: Path | str = ""
    """The source that :meth:`parts` uses if none is given: a file or a URL."""
    sample_name: str = ""
    """The name of its sample in ``data/samples``; "": the name of the dataset."""

    def parts(self, source: Path | str | None, ask: PrepareOptions) -> Sequence[SourceFile]:
        """The files to read for ``source``: a file or folder (Path), a URL (str), or the official source (None).

        By default one file with all splits. Raises DataError if a path does not exist or has no data of this dataset,
        UsageError if ``ask`` is not supported.
        """
        reject_unsupported(self.name, ask)
        place = source or self.official
        if not place:
            raise DataError(
                f"{self.name} has no official file", hint=prepare_command(self.name, None, "--source", "FILE")
            )
        if isinstance(place, Path):
            return [SourceFile(str(place), local_file(place, f"a file of {self.name}"))]
        return [SourceFile(place, url=place, file_name=place.rpartition("/")[2] or self.name)]

    @abstractmethod
    def read(self, part: SourceFile, watch: ReaderCallbacks) -> Iterator[Trace]:
        """Yield the traces of ``part.path`` in order, each with its split (``part.split`` unless that is "").

        Raises DataError, which names the file, the record and the field with the error.
        """

    def reading(self) -> dict[str, Any]:
        """How the source was read, for the manifest. Called after :meth:`read`. Empty for benchmarks."""
        return {}

    def gold_answers(self, query: Query) -> tuple[str, ...]:
        """The reference answers for F1 and the judge. Each of them is a right answer."""
        return query.gold_answers

    def scored_text(self, reply: str) -> str:
        """The part of a reply that F1 and the judge compare."""
        return reply

    def score(self, query: Query, prediction: str) -> float:
        """The score of a reply in [0, 1]: the maximum over the reference answers. By default token F1."""
        answer = self.scored_text(prediction)
        return max(token_f1(answer, truth) for truth in self.gold_answers(query))

    def judge_prompt(self, category: str) -> str:
        """The judge's rule for a category: the name of a template, or the text; "" for the general rule."""
        return "judge_abstention" if category == ABSTENTION else ""

    def env_root(self, manifest: DatasetManifest, split: str) -> Path | None:
        """For a dataset of tasks: the folder with the tasks of a prepared split. Raises DataError if it is missing."""
        return None


def prepare_command(dataset: str, data_dir: Path | None = None, *flags: str) -> str:
    """The ``prepare`` command for a message, quoted for the shell, with the plug-in file of the dataset."""
    place = [] if data_dir in (None, Path("data")) else ["--data-dir", str(data_dir)]
    plugins = [word for path in files_of(f"dataset {dataset}") for word in ("--plugin", str(path))]
    return shlex.join(["memskill", "prepare", "--dataset", dataset, *place, *flags, *plugins])


def reject_unsupported(name: str, ask: PrepareOptions, *, splits: Sequence[str] = (), limit: bool = False) -> None:
    """Raise UsageError if ``ask`` has a split that is not in ``splits``, or a limit although ``limit`` is False."""
    wrong = [split for split in ask.splits if split not in splits]
    if wrong and not splits:
        raise UsageError(
            f"{name} is always prepared as a whole, without --split {wrong[0]}", hint=prepare_command(name)
        )
    if wrong:
        raise UsageError(f"{name} has no split {wrong[0]}", hint=f"--split {', '.join(splits)}")
    if ask.limit and not limit:
        raise UsageError(f"{name} is always prepared as a whole, without --limit", hint=prepare_command(name))


def local_file(path: Path, official: str) -> Path:
    """Return ``path`` if it is a file. Else raise DataError, which names the expected file."""
    if path.is_file():
        return path
    problem = "is a folder, not a file" if path.is_dir() else "no such file"
    raise DataError(f"{path}: {problem}", hint=f"give the path of {official}")


def source_flags(source: str) -> list[str]:
    """The options of ``prepare`` for the ``source`` of a manifest."""
    return ["--sample"] if source.startswith("sample:") else ["--source", source]
