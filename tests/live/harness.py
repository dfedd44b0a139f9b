"""An open memory for tests: real files, spans, executor and protection; the language model is a function."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from memskill_cli.config import MemoryConfig
from memskill_cli.live.reading import SkillReader
from memskill_cli.live.service import MemoryService
from memskill_cli.live.spans import SpanRule
from memskill_cli.live.store import opened
from memskill_cli.llm.client import Reply
from memskill_cli.llm.reasoning import ReplyText
from memskill_cli.memory.encoder_cache import NoCache
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.memory.encoders import CachedEncoder, load_encoder
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.types import SkillSelection, SpanMode

from ..factories import rollout_context

T = TypeVar("T")
Write = Callable[[str], str]
"""From the text of a prompt to the model's reply."""


def insert_lines(prompt: str) -> str:
    """An INSERT of each line ``Speaker: text`` of the span."""
    span = prompt.rpartition("<span>")[2].partition("</span>")[0]
    lines = [line.partition(": ")[2] for line in span.splitlines() if ": " in line]
    return "\n\n".join(f"ACTION: INSERT\nMEMORY: {line}" for line in lines) or "ACTION: NOOP"


class Model:
    """Stands for the client of language models. It records its prompts."""

    def __init__(self, write: Write = insert_lines) -> None:
        self.write = write
        self.prompts: list[str] = []
        self.hold: asyncio.Event | None = None
        """If set, replies wait for it."""

    async def asked(self, count: int) -> None:
        """Wait until so many prompts have come."""
        while len(self.prompts) < count:  # noqa: ASYNC110 - in a test
            await asyncio.sleep(0.001)

    async def ask(self, role: str, messages: Any, *, parse: Any = str, **more: Any) -> Any:
        prompt = messages[-1]["content"]
        self.prompts.append(prompt)
        await (self.hold.wait() if self.hold else asyncio.sleep(0))
        text = ReplyText(self.write(prompt))
        return Reply(parse(text), text, cached=False)


@asynccontextmanager
async def memory(
    folder: Path,
    model: Model | None = None,
    *,
    mode: SpanMode = "turn",
    size: int = 64,
    overlap: int = 8,
    retrieval: CachedEncoder | None = None,
    **settings: Any,
) -> AsyncIterator[MemoryService]:
    """A memory whose skills are the seeds, all selected for each span. ``retrieval``: another encoder for queries."""
    bank, config = seed_bank(), MemoryConfig(**{"resolve_dates": False, **settings})
    one = load_encoder("hashing", cache_dir=None, cache=NoCache())
    encoders = EncoderPair(one, retrieval or one)
    context = rollout_context(model or Model(), encoders, memory=config)
    reader = SkillReader(context, bank, lambda state: SkillSelection(tuple(range(len(bank))), 0.0, 0.0))

    @asynccontextmanager
    async def reading() -> AsyncIterator[SkillReader]:
        yield reader

    @asynccontextmanager
    async def encoding() -> AsyncIterator[None]:
        yield

    with opened(folder) as store:
        service = MemoryService(store, encoders, config, SpanRule(mode, size, overlap), reading, encoding)
        try:
            yield service
        finally:
            service.close()
            one.close()


def within(folder: Path, work: Callable[[MemoryService], Coroutine[Any, Any, T]], *args: Any, **options: Any) -> T:
    """Open a memory, do ``work``, close it."""

    async def whole() -> T:
        async with memory(folder, *args, **options) as service:
            return await work(service)

    return asyncio.run(whole())


def bytes_of(folder: Path) -> bytes:
    """The content of all files of a folder, and their names."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return b"".join(str(file).encode() + file.read_bytes() for file in files)
