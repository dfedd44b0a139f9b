"""A method for memskill: every question is answered from the newest spans of the conversation.

    memskill eval --dataset locomo --plugin examples/method_plugin/newest.py --method newest,rag

Installed as a package (pip install ./examples/method_plugin) it needs no --plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memskill_cli.evaluation.methods import register_method
from memskill_cli.evaluation.methods.base import CONTROLLER, EXECUTOR, TRAINING, WINDOW, Method, MethodMemory
from memskill_cli.types import Action, MemoryItem, MemoryVersion, Provenance, Query, Retrieved, Span, Trace


@register_method("newest")
class Newest(Method):
    """The last ``memory.num_memories`` spans, newest first."""

    # Settings that cannot change a score of this method. All others are part of the evaluation's name.
    irrelevant_settings = EXECUTOR | CONTROLLER | TRAINING | WINDOW | {"encoders.retrieval", "memory.retriever"}

    async def build_memory(self, trace: Trace, spans: Sequence[Span], advance: Callable[[], None]) -> MethodMemory:
        for _ in spans:
            advance()  # moves the progress bar
        newest = [_item(span) for span in reversed(spans)][: self.context.settings.memory.num_memories]

        async def retrieve(query: Query) -> list[Retrieved]:
            return [Retrieved(item, 1.0) for item in newest]

        return MethodMemory(retrieve, len(newest))


def _item(span: Span) -> MemoryItem:
    written = MemoryVersion(Action.INSERT, span.text, Provenance(span.trace_id, span.index, (), span.index))
    return MemoryItem(f"span-{span.index}", span.text, (written,))
