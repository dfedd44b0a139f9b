"""Reading a trace: model calls wait only for the encodings that they need."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from memskill_cli.config import Config
from memskill_cli.errors import ModelError
from memskill_cli.memory import encoders
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.encoder_models import ApiEncoder
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.rollout.episode import build_memory
from memskill_cli.rollout.kinds import prefetch_queries
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.types import Matrix, Query, SkillSelection, Span

from ..factories import rollout_context

SPANS = [Span("t", index, f"span {index}") for index in range(6)]
QUERIES = [Query(f"q{index}", "t", "", f"question {index}", ("x",)) for index in range(2)]


class Embedding:
    """An API that encodes one text at a time, and blocks from its second call until it is released."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.go_on = threading.Event()

    def __call__(self, model: str, texts: Sequence[str]) -> Matrix:
        self.texts += texts
        assert len(self.texts) == 1 or self.go_on.wait(20)
        return np.array([[len(text), 1.0, int(text[-1])] for text in texts], np.float32)


class Silent:
    """A model client whose model never replies. ``ask`` records the texts that are encoded by then."""

    def __init__(self, api: Embedding) -> None:
        self.api, self.seen = api, []

    async def ask(self, *args: Any, **options: Any) -> Any:
        for _ in range(4000):
            if len(self.api.texts) == 2:
                break
            await asyncio.sleep(0.005)
        self.seen = list(self.api.texts)
        self.api.go_on.set()
        raise ModelError("nobody answers")


def test_the_first_call_waits_for_one_span_and_the_others_are_encoded_meanwhile(monkeypatch):
    monkeypatch.setattr(ApiEncoder, "batch_chars", 1)
    monkeypatch.setattr(encoders, "_LOOKUP_CHARS", 1)
    api, settings = Embedding(), Config()
    encoder = load_encoder("litellm:m", cache_dir=None, embed=api)
    llm = Silent(api)
    context = rollout_context(llm, encoder, settings)

    async def go() -> None:
        prefetch_queries(context, QUERIES, len(SPANS))
        with pytest.raises(ModelError):
            await build_memory(
                context, SPANS, seed_bank(), lambda state: SkillSelection((0,), 0.0, 0.0), MemoryBank("t")
            )
        encoder.close()

    asyncio.run(go())
    assert llm.seen == ["span 0", "span 1"]
    assert "question 0" not in api.texts  # not needed before the spans
    assert len(api.texts) < len(SPANS)  # closing has cancelled the rest
