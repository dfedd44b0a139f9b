"""Reasoning in the text of a reply: removed whatever marks it, and never taken for the reply."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.reasoning import ReplyText, read_reply, strip_reasoning

DRAFT = "Maybe 1999?\nACTION: DELETE\nINDEX: 0"

MARKED = {
    "think": f"<think>\n{DRAFT}\n</think>\n\nPorto",
    "in capitals": f"<THINK>{DRAFT}</THINK>Porto",
    "thinking": f"<thinking>{DRAFT}</thinking>Porto",
    "thought": f"<thought>\n{DRAFT}\n</thought>\nPorto",
    "reasoning": f"<reasoning>{DRAFT}</reasoning>\nPorto",
    "analysis": f"<analysis>{DRAFT}</analysis>\nPorto",
    "seed": f"<seed:think>{DRAFT}</seed:think>Porto",
    "brackets": f"[THINK]{DRAFT}[/THINK]Porto",
    "triangles": f"◁think▷{DRAFT}◁/think▷Porto",
    "begin of thought": f"<|begin_of_thought|>{DRAFT}<|end_of_thought|>\n<|begin_of_solution|>Porto<|end_of_solution|>",
    "start thinking": f"<|START_THINKING|>{DRAFT}<|END_THINKING|><|START_RESPONSE|>Porto<|END_RESPONSE|>",
    "no opening mark": f"Okay. {DRAFT}\n</think>\n\nPorto",
    "several": f"<think>a</think>\n<think>{DRAFT}</think>Porto",
    "one in the other": f"<think>a <think>b</think> {DRAFT}</think>Porto",
    "empty": "<think>\n\n</think>\n\nPorto",
    "after the reply": f"Porto\n<think>{DRAFT}</think>",
    "in the middle of a line": f"Well, <think>{DRAFT}</think>Porto",
    "harmony": (
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>Porto<|return|>"
    ),
    "harmony, several channels": (
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>commentary<|message|>{DRAFT}<|end|>"
        "<|start|>assistant<|channel|>final <|constrain|>json<|message|>Porto"
    ),
    "harmony without its tokens": f"analysis{DRAFT}assistantfinalPorto",
    "harmony without its tokens, in small letters": f"analysis we need: {DRAFT}\nassistantfinal\nPorto",
    "a mark with an attribute": f'<think type="x">{DRAFT}</think>Porto',
    "a family's own mark": f"<longcat_think>{DRAFT}</longcat_think>Porto",
    "bars": f"<|think|>{DRAFT}<|/think|>Porto",
    "inner prefix": f"<|inner_prefix|>{DRAFT}<|inner_suffix|>Porto",
    "a channel with one bar": f"<|channel>thought\n{DRAFT}\n<channel|>Porto",
    "at the end of a memory that was drafted": "MEMORY: draft</think>\nPorto",
    "behind JSON": f"Porto<think>\nmaybe {DRAFT}\n</think>",
    "with a byte order mark": "\ufeffPorto",
    "in a box": "<|begin_of_box|>Porto<|end_of_box|>",
}
UNFINISHED = {
    "think": f"<think>\n{DRAFT}",
    "after the reply": f"Porto\n<think>{DRAFT}",
    "a second time": f"<think>a</think>\n<think>{DRAFT}",
    "brackets": f"[THINK]{DRAFT}",
    "triangles": f"◁think▷{DRAFT}",
    "harmony": f"<|channel|>analysis<|message|>{DRAFT}",
    "harmony, cut in its first token": "<|channel|>analy",
    "harmony without its tokens": "analysisWe need to find the city.",
    "harmony whose analysis quotes a channel": "<|channel|>analysis<|message|>It says <|channel|>final<|message|>x",
    "behind JSON": '{"score": 1}<think>\nmaybe {"score": 0}',
    "in a list": '[ <think>a\n{"score": 0}',
}
ENDED = ["Porto<|im_end|>", "Porto<|eot_id|>", "Porto</s>", "Porto<|endoftext|>", "Porto<end_of_turn>\n",
         "Porto<｜end▁of▁sentence｜>", "<|im_start|>assistant\nPorto<|im_end|>\n<|im_start|>user\nAnd Rome?",
         "<s>Porto</s>"]  # fmt: skip


@pytest.mark.parametrize("name", MARKED)
def test_what_is_left_is_the_reply(name: str) -> None:
    left = read_reply(MARKED[name], cut=False).replace("Well,", "").strip()
    assert left == "Porto"


@pytest.mark.parametrize("name", UNFINISHED)
@pytest.mark.parametrize("cut", [True, False])
def test_a_reply_that_ends_inside_its_reasoning_is_none(name: str, cut: bool) -> None:
    assert strip_reasoning(UNFINISHED[name]) is None
    with pytest.raises(UnreadableReplyError, match="max_tokens"):
        read_reply(UNFINISHED[name], cut)


def test_a_reply_of_nothing_but_reasoning_is_none() -> None:
    with pytest.raises(UnreadableReplyError, match="says nothing"):
        read_reply(f"<think>{DRAFT}</think>\n", cut=False)


@pytest.mark.parametrize("text", ENDED)
def test_end_tokens_and_what_follows_them_are_no_part_of_it(text: str) -> None:
    assert read_reply(text, cut=False).strip() == "Porto"


@pytest.mark.parametrize(
    "text",
    [
        "Porto",
        "",
        "MEMORY: Bo asked what <think> does",
        "MEMORY: Bo asked what <think> does, and </think> too",
        "- **MEMORY_ITEM:** [THINK] is a mark",
        '{"explanation": "it contains <think> as text", "score": 1}',
        "The mark is called `<think>` there.",
        "ACTION: INSERT\nMEMORY: Bo asked what </think> does.\n\nACTION: INSERT\nMEMORY: Eve likes it",
        '{"actions": [\n{"action": "INSERT",\n"memory": "Bo uses </think> tags"}]}',
        '{"explanation": "The answer was `</think>{score: 1}`", "score": 0}',
        '{"explanation": "The answer has <|channel|>", "score": 1}',
        "Analysis of the flat",
        "analysis of the flat",
        "He wrote </s> in the middle",
    ],
)
def test_a_mark_that_is_quoted_is_text(text: str) -> None:
    assert strip_reasoning(text) == text


@given(st.text(), st.sampled_from(["<think>{}</think>", "[THINK]{}[/THINK]", "◁think▷{}◁/think▷"]), st.text())
def test_nothing_of_a_thought_at_the_beginning_is_left(thought: str, form: str, said: str) -> None:
    """Whatever is thought (but for marks of its own) and whatever is said."""
    marks = "<>[]◁▷|/"
    thought, said = (text.translate(dict.fromkeys(map(ord, marks), " ")) for text in (thought, said))
    if not said.lstrip().startswith(("analysis", "assistantanalysis")):
        assert strip_reasoning(form.format(thought) + said) == said


def test_a_reply_keeps_its_cut_when_it_is_sent_to_another_process() -> None:
    sent = pickle.loads(pickle.dumps(ReplyText("Porto", cut=True)))
    assert (sent, sent.cut) == ("Porto", True)


LONG = {
    "blanks in a tag": "<" + " " * 400_000,
    "tags that never end": "<think " * 60_000,
    "quotes": '"' * 400_000,
    "closing marks on a line": "MEMORY: " + "</think>x" * 40_000,
}


@pytest.mark.parametrize("name", LONG)
def test_long_replies_are_read_in_no_time(name: str) -> None:
    """What grows by the square would need hours for these; the limit is that of the test."""
    strip_reasoning(LONG[name])
