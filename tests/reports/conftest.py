"""Run directories as a training leaves them, made by hand, and pages as a browser sees them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from memskill_cli import config
from memskill_cli.evaluation.summary import summarise
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.skills.skill import Skill
from memskill_cli.skills.stages import Stage
from memskill_cli.types import Action
from memskill_cli.utils import files

Row = dict[str, Any]


def metrics(stage: int, inner: int, reward: float = 0.2, **more: Any) -> Row:
    """One line of metrics.jsonl."""
    row: Row = {
        "outer": stage,
        "inner": inner,
        "stage": stage,
        "episode_reward_mean": reward,
        "episode_reward_std": 0.05,
    }
    row |= {"policy_loss": -0.01, "value_loss": 0.02, "entropy": 1.0, "approx_kl": 0.01, "clipfrac": 0.05}
    row |= {"process_reward_mean": 0.01, "explained_variance": 0.5, "steps": 10, "memories_mean": 25.0}
    row |= {"skill_usage": {"insert": 20, "update": 10}, "actions": {"insert": 30, "update": 5}, "rejected_actions": 3}
    row |= {"rejected": {"bad_index": 2, "empty_text": 1}, "unreadable_replies": 1}
    return row | {"llm_calls": 40, "cached_calls": 4, "cost_usd": 0.01, "seconds": 5.0} | more


def call(scope: str = "train", role: str = "executor", **more: Any) -> Row:
    """One line of usage.jsonl."""
    usual = {"scope": scope, "role": role, "model": "openai/gpt-4o-mini", "key": "openai#1", "outcome": "ok"}
    return {"time": 1.0, **usual, "cached": False, "prompt_tokens": 900, "completion_tokens": 80, "usd": 0.002, **more}


def result(at: int, f1: float | None = 0.0, judge: float | None = 0.0, **more: Any) -> Row:
    """One line of results.jsonl."""
    found = [{"id": f"m{at}-{i}", "text": f"memory {i} of query {at}", "score": 0.9 - i / 50} for i in range(20)]
    row: Row = {"trace_id": "t", "query_id": f"t:{at}", "category": ("single-hop", "temporal")[at % 2]}
    row |= {"question": f"What is number {at}?", "truths": [f"truth {at}"], "prediction": f"guess {at}"}
    return row | {"f1": f1, "judge": judge, "retrieved": found, "error": ""} | more


def write_jsonl(file: Path, rows: Sequence[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(map(files.to_json, rows)))


def with_skill(bank: SkillBank, stage: int, name: str, body: str) -> SkillBank:
    changed = bank.copy()
    changed.stage = stage
    changed.add(Skill(name, f"Use {name}.", body, Action.INSERT, "designer", stage, stage))
    return changed


@dataclass
class Made:
    """A run directory made by hand."""

    path: Path

    def learned(self, rows: Sequence[Row]) -> Made:
        write_jsonl(self.path / "metrics.jsonl", rows)
        return self

    def called(self, rows: Sequence[Row]) -> Made:
        write_jsonl(self.path / "usage.jsonl", rows)
        return self

    def staged(self, *found: Stage) -> Made:
        for stage in found:
            stages.write(self.path / "stages", stage)
        return self

    def evaluated(self, name: str, rows: Sequence[Row], **summary: Any) -> Path:
        """An evaluation of LoCoMo's test split, as the evaluator writes it."""
        folder = self.path / "evals" / name
        write_jsonl(folder / "results.jsonl", rows)
        task = {"dataset": "locomo", "split": "test", "variant": "", "method": "memskill", "limit": 0}
        whole = {**task, "data_digest": "f7078789f1bf", **summarise(rows, resamples=200, seed=1), "memories": 60}
        files.write_json(folder / "summary.json", {**whole, "run": self.path.name, "checkpoint": "000100", **summary})
        return folder


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A run that has only been begun."""
    run = Made(tmp_path / "runs" / "a")
    manifest = {"format": 1, "memskill": "0.1.0", "dataset": "locomo", "data_digest": "abc", "seed": 42}
    files.write_json(run.path / "run.json", {**manifest, "status": "running", "created": "2026-11-22T20:51:36"})
    (run.path / "config.toml").write_text(config.to_toml(config.load()))
    seed_bank(noop=False).save(run.path / "skill_bank.json")
    run.staged(Stage(0, seed_bank(noop=False)))
    return run


@pytest.fixture
def trained(made: Made) -> Made:
    """Three stages of four inner epochs: the first kept, the second best, the third rolled back; and what was paid."""
    first = seed_bank(noop=False)
    second = with_skill(first, 1, "places", "## Purpose\nKeep where it was.")
    third = with_skill(second, 2, "pets", "## Purpose\nKeep the dog's name.")
    change = {"summary": "Places were lost.", "changes": []}
    made.staged(
        Stage(0, first, reward=0.2, kept=True, checkpoint=4),
        Stage(1, second, 0.31, True, 8, change, "add places: two cases asked where", True, 0),
        Stage(2, third, 0.25, False, 12, {"summary": "Pets."}, "add pets: one case", False, 1),
    )
    rows = [metrics(stage, i, 0.1 + 0.05 * stage + 0.01 * i) for stage in range(3) for i in range(4)]
    made.learned(rows)
    made.called([call(), call(role="answer"), call(role="answer", cached=True, usd=0.0, prompt_tokens=0)])
    manifest = files.to_json({"dataset": "locomo", "status": "finished", "created": "2026-11-22T20:51:36", "seed": 42})
    (made.path / "run.json").write_bytes(manifest)
    return made


class Page(HTMLParser):
    """What a page says and what it is made of."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._words: list[str] = []
        self._skip = False
        self.source = file.read_text("utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._skip = tag == "style"
        self._apart(tag)

    def handle_endtag(self, tag: str) -> None:
        self._skip = False
        self._apart(tag)

    def _apart(self, tag: str) -> None:
        if tag not in ("b", "span", "code", "a"):
            self._words.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self._words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self._words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def links(self) -> list[str]:
        return [str(attrs["href"]) for tag, attrs in self.tags if tag == "a"]

    def pictures(self) -> list[str]:
        """The titles of the drawings."""
        svgs = self.source.split("<svg")[1:]
        return [part.split("<title>")[1].split("</title>")[0] for part in svgs]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The machine's own Chromium, without a screen; tests that need it are skipped where there is none.

    Closed with the module: while it is open an event loop runs in this thread, and no other test could run its own.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-sync", *quiet]
        )
        yield found
        found.close()


Seen = Callable[..., "Look"]


@dataclass
class Look:
    """One page in one window: the page, what its console said, and what it asked for besides itself."""

    page: Any
    console: list[str] = dataclasses.field(default_factory=list)
    requests: list[str] = dataclasses.field(default_factory=list)

    @property
    def overflow(self) -> int:
        root = "document.documentElement"
        return int(self.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))


@pytest.fixture
def look(browser: Any) -> Iterator[Seen]:
    """Opens a file in a window of a width, in light or dark."""
    opened = []

    def open_(file: Path, width: int = 1280, scheme: str = "light") -> Look:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened.append(context)
        seen = Look(context.new_page())
        seen.page.on("console", lambda message: seen.console.append(message.text))
        seen.page.on("pageerror", lambda error: seen.console.append(str(error)))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.on("dialog", lambda dialog: (seen.console.append("dialog"), dialog.dismiss()))
        seen.page.goto(file.as_uri())
        seen.requests.remove(file.as_uri())
        return seen

    yield open_
    for context in opened:
        context.close()
