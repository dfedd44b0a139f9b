"""What a dataset is to the rest of the program: a reader of its files, and the rules by which it is asked and scored.

A dataset is one class. Its members have defaults, so that a new question-answering dataset is one short file: a name
and ``read``. Add ``register_dataset`` (registry.py) in a file for ``--plugin``, or an entry point of an installed
package. Nothing else in the program compares names of datasets.
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
from memskill_cli.utils.text_metrics import token_f1

SPLITS = ("train", "val", "test")
ABSTENTION = "abstention"
"""Category of questions that cannot be answered: the right answer says so. Judged, never scored by F1."""
SPAN_SETTINGS: Mapping[str, Any] = {"eval.span_mode": "fixed-length", "eval.chunk_size": 512, "eval.chunk_overlap": 64}
"""Spans of an evaluation, as published for all datasets."""

Note = Callable[[str], None]
"""Takes one sentence on something odd that was met and how it was read."""


class PrepareOptions(NamedTuple):
    """What of a dataset is wanted. A reader refuses the options it has no use for (:func:`reject_unsupported`)."""

    splits: tuple[str, ...] = ()
    """Names of splits; none is whatever the reader takes by default."""
    limit: int = 0
    """Traces of a split at most; 0 is all."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file or folder of a benchmark, and what is to be made of it."""

    source: str
    """As the manifest and messages name it: URL, absolute path, or ``sample:<file name>``."""
    path: Path | None = None
    """Where it is; None while it is still to be fetched from ``url``."""
    url: str = ""
    """``http(s)://…``, or ``hf://datasets/<owner>/<name>/<file>`` on the Hugging Face Hub."""
    file_name: str = ""
    """What a file from ``url`` is called once it is here."""
    split: str = ""
    """The one split that is made of it; "" where it holds all splits of the benchmark."""
    limit: int = 0
    """Traces at most; 0 is all."""
    expected_sha256: str = ""
    """sha256 of the official file as it was when this version was tested."""
    fingerprint: str = ""
    """Names the content of a folder (a file's is its sha256): prepared again only if it differs."""


@dataclass(frozen=True, slots=True)
class ReaderCallbacks:
    """What a reader tells while it reads."""

    note: Note = lambda text: None
    """Oddities that change nothing in meaning. They end up in the manifest."""
    progress: Callable[[int, int | None], None] = lambda done, total: None
    """(pieces done, pieces in all): for readers whose work is long before the first trace."""
    scratch: Path = Path()
    """A folder of the reader's own beside the prepared data, for journals; removed once all is prepared."""


class Dataset(ABC):
    """One dataset: how its files are read, how its queries are put, and how answers are scored."""

    name: str
    """As on the command line."""
    kind: Literal["qa", "env"] = "qa"
    """What a query is: a question that is answered, or a task in a text environment that is played."""
    trains: bool = True
    """Whether the dataset is trained on; if not, `eval` is what follows `prepare`."""
    default_split: str = "test"
    """The split that is evaluated when none is asked for."""
    variants: tuple[str, ...] = ()
    """What ``prepare --variant`` may name: splits ``test-<variant>``, or ``train``."""
    settings: Mapping[str, Any] = {**SPAN_SETTINGS, "eval.num_skills": 7, "models.answer_max_tokens": 128}
    """Default settings by dotted name. A run that is evaluated on another dataset takes that one's."""
    presets: Mapping[str, Mapping[str, Any]] = {}
    """Settings that a preset sets on this dataset besides, by preset."""
    prompt_style: Literal["conversational", "embodied"] = "conversational"
    """What traces are about, for the executor and the designer: what was said, or how something was done."""
    answer_prompt: str = "answer"
    """The answering model's instruction: the name of a template of :mod:`memskill_cli.agent.prompts`, or the text."""
    has_abstention: bool = False
    """Whether there are questions of the category :data:`ABSTENTION`."""
    excluded_queries: str = ""
    """Which queries are not scored, for a notice."""
    environment: str = ""
    """Of a dataset of tasks: the environment that they are played in (:mod:`memskill_cli.envs.environment`)."""
    training_notice: str = ""
    """Said when a training on this dataset begins."""
    rewards: tuple[str, ...] = ()
    """The rewards that training may use (``reward.kind``); () is any."""
    paper_results: PaperResults = PaperResults()
    """What the MemSkill paper reports on this dataset."""
    official: Path | str = ""
    """The file or URL that :meth:`parts` takes when no source is given."""

    def parts(self, source: Path | str | None, ask: PrepareOptions) -> Sequence[SourceFile]:
        """What is to be read, of a file or folder (Path), of a URL (str), or of the official place (None).

        Here it is one file that holds all splits. Raises DataError for a path that does not exist or holds nothing of
        the dataset; UsageError for an ``ask`` that makes no sense.
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
        """The traces of ``part.path`` in order, each with its split (``part.split`` unless that is "").

        Raises DataError naming the file, the record and the field at fault.
        """

    def gold_answers(self, query: Query) -> tuple[str, ...]:
        """The true answers that F1 and the judge compare with, any of which is right."""
        return query.gold_answers

    def scored_text(self, reply: str) -> str:
        """The part of a reply that F1 and the judge compare."""
        return reply

    def score(self, query: Query, prediction: str) -> float:
        """The score of a reply in [0, 1]; the best over the true answers (at least one). Here: token F1."""
        answer = self.scored_text(prediction)
        return max(token_f1(answer, truth) for truth in self.gold_answers(query))

    def judge_prompt(self, category: str) -> str:
        """The judge's rule for a category: the name of a template, or the text; "" for the general rule."""
        return "judge_abstention" if category == ABSTENTION else ""

    def env_root(self, manifest: DatasetManifest, split: str) -> Path | None:
        """The folder of the environments of a prepared split, of a dataset of tasks. DataError if it is gone."""
        return None


def prepare_command(dataset: str, data_dir: Path | None = None, *flags: str) -> str:
    """The ``prepare`` command to suggest, as it would be typed."""
    place = [] if data_dir in (None, Path("data")) else ["--data-dir", str(data_dir)]
    return shlex.join(["memskill", "prepare", "--dataset", dataset, *place, *flags])


def reject_unsupported(name: str, ask: PrepareOptions, *, splits: Sequence[str] = (), limit: bool = False) -> None:
    """UsageError if ``ask`` names a split that is not one of ``splits``, or a limit where there is none."""
    wrong = [split for split in ask.splits if split not in splits]
    if wrong and not splits:
        raise UsageError(f"{name} is prepared whole: --split {wrong[0]} makes no sense", hint=prepare_command(name))
    if wrong:
        raise UsageError(f"{name} has no split {wrong[0]}", hint=f"--split {', '.join(splits)}")
    if ask.limit and not limit:
        raise UsageError(f"{name} is prepared whole: --limit makes no sense", hint=prepare_command(name))


def local_file(path: Path, official: str) -> Path:
    """``path`` if it is a file; DataError naming what is expected if not."""
    if path.is_file():
        return path
    problem = "is a folder, expected the file" if path.is_dir() else "no such file"
    raise DataError(f"{path}: {problem}", hint=f"give the path of {official}")


def source_flags(source: str) -> list[str]:
    """The flags of ``prepare`` that ask for what a manifest's ``source`` names."""
    return ["--sample"] if source.startswith("sample:") else ["--source", source]
