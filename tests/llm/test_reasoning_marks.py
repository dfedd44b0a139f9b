"""Marks of reasoning one by one: where each begins and ends, and where it is only text."""

from __future__ import annotations

import pytest

from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.reasoning import ADVICE, UNFINISHED, ReplyText, read_reply, strip_reasoning

TAGS = [
    "think", "Thinking", "THOUGHT", "thoughts", "reasoning", "reason", "reflection", "analysis", "scratchpad",
    "seed:think", "inner_thoughts", "innerthought", "internal_monologue", "internalreasoning", "chain_of_thought",
    "chainofthought",
]  # fmt: skip
PAIRS = [
    *((f"<{tag}>", f"</{tag}>") for tag in TAGS),
    ("< think >", "< / think >"),
    ("[THINK]", "[/THINK]"),
    ("[thinking]", "[/thinking]"),
    ("[REASONING]", "[/REASONING]"),
    ("◁think▷", "◁/think▷"),
    ("◀thinking▶", "◀/thinking▶"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|begin_of_reasoning|>", "<|END_OF_REASONING|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
]


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_what_stands_between_two_marks_is_removed(opening: str, closing: str) -> None:
    assert strip_reasoning(f"a {opening}b\nc{closing} d") == "a  d"
    assert strip_reasoning(f"{opening}b{closing}a{opening}c{closing}d") == "ad"
    assert strip_reasoning(f"b\nc{closing}d") == "d"
    assert strip_reasoning(f"a{opening}b") is None
    assert strip_reasoning(f"a{opening}b{closing}c{opening}d") is None
    assert strip_reasoning(f"x{closing}y{opening}z{closing}w") == "yw"


@pytest.mark.parametrize("mark", ["<thinker>", "<b>", "[THINKER]", "[think", "<|begin_of_text_|>", "think>", "<think"])
def test_what_is_no_mark_is_text(mark: str) -> None:
    assert strip_reasoning(f"a {mark} b") == f"a {mark} b"


@pytest.mark.parametrize(
    "line",
    [
        "MEMORY: a <think> b </think> c",
        "memory - a <think> b </think> c",
        "**NEW MEMORY:** <think>b</think>",
        "2. UPDATED_MEMORY = <think> b",
        "CONTENT: </think>",
        "Text: <think>",
        '{"a": "<think>"}',
        "  [1, '<think>']",
        '"<think>" is a mark',
        '"It is <think> there."',
        "It is called `<think>` or '<think>'.",
        "She wrote “<think>”.",
    ],
)
def test_a_mark_that_a_line_quotes_is_text_up_to_the_end_of_the_line(line: str) -> None:
    closes = line.endswith("</think>") and "<think>" not in line
    if not closes:
        assert strip_reasoning(f"{line}\nd") == f"{line}\nd"
    assert strip_reasoning(f"d\n<think>e</think>\n{line.replace('</think>', '')}") == (
        f"d\n\n{line.replace('</think>', '')}"
    )


def test_only_the_closing_mark_of_a_quoted_pair_is_text() -> None:
    assert strip_reasoning("MEMORY: a <think> b\nx </think>c") == "c", "on another line it ends reasoning"
    assert strip_reasoning("`<think>` and </think> are marks") == "`<think>` and </think> are marks"
    assert strip_reasoning("<think>a `<think>` b</think>c") == "c", "nothing inside reasoning is quoted"


def test_what_follows_a_quoted_pair_is_looked_at() -> None:
    quoted = "MEMORY: a <think> b </think>"
    assert strip_reasoning(f"{quoted}\n<think>c</think>d") == f"{quoted}\nd"
    assert strip_reasoning(f"{quoted} c </think>d") == f"{quoted} c </think>d", "the line of a memory goes on"
    assert strip_reasoning(f"{quoted} c </think>\nd") == "\nd", "a mark at its end closes what began with the text"


@pytest.mark.parametrize("before", ["  [1, ", "[ ", "{ ", '{"a": "b"} '])
def test_beside_json_a_mark_is_one_outside_of_a_string(before: str) -> None:
    assert strip_reasoning(f"{before}<think>x</think>") == before
    assert strip_reasoning(f"{before}<think>x") is None


def test_what_stands_before_the_first_mark_decides_for_its_line() -> None:
    assert strip_reasoning("a<think>b</think> MEMORY: <think>c</think>d") == "a MEMORY: d"
    assert (
        strip_reasoning("MEMORY: a <think>b</think> <think>c</think> d")
        == "MEMORY: a <think>b</think> <think>c</think> d"
    )


# --- channels ----------------------------------------------------------------------------------------------------


def channel(name: str, text: str, more: str = "") -> str:
    return f"<|channel|>{name}{more}<|message|>{text}"


def test_of_channels_the_last_final_one_is_the_reply_up_to_its_end() -> None:
    first = channel("analysis", "a") + "<|end|><|start|>assistant"
    assert strip_reasoning(first + channel("final", "b")) == "b"
    assert strip_reasoning(first + channel("final", "b") + "<|end|>" + channel("final", "c")) == "c"
    for end in ("<|end|>", "<|return|>", "<|call|>", "<|start|>assistant", "<|channel|>analysis"):
        assert strip_reasoning(first + channel("final", "b") + end + "x") == "b"
    assert strip_reasoning(first + channel("final", "b", " <|constrain|>json")) == "b"
    assert strip_reasoning(first + channel("commentary", "b", " to=functions.f")) is None
    assert strip_reasoning("<|channel|>final") is None


def test_channels_whose_tokens_a_server_has_dropped() -> None:
    assert strip_reasoning("analysisWe look.assistantfinalBo") == "Bo"
    assert strip_reasoning(" assistantanalysisWe look.assistantfinalNo.assistantfinalBo") == "Bo"
    for begin in ("W", "7", '"', "'", "(", "*"):
        assert strip_reasoning(f"analysis{begin} and so on") is None
    for text in ("analysis of it", "Analysis: We", "assistantfinalBo", "the analysisWe made"):
        assert strip_reasoning(text) == text


# --- tokens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token",
    [
        "<s>", "<bos>", "<|begin_of_text|>", "<|im_start|>assistant", "<|start|>assistant", "<|START_RESPONSE|>",
        "<|start_header_id|>assistant<|end_header_id|>", "<start_of_turn>model", " <s>\n<|im_start|>",
    ],
)  # fmt: skip
def test_tokens_that_begin_a_turn_are_no_part_of_the_reply(token: str) -> None:
    assert strip_reasoning(f"{token}Bo") == "Bo"


@pytest.mark.parametrize(
    "token",
    [
        "<|im_end|>", "<|im_start|>user", "<|eot_id|>", "<|end|>", "<|return|>", "<|endoftext|>", "<|end_of_turn|>",
        "<|user|>", "<|system|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>\n", "<end_of_turn>",
        "[/INST]", "</s><s>[INST]",
    ],
)  # fmt: skip
def test_a_reply_ends_at_its_first_end_token(token: str) -> None:
    assert strip_reasoning(f"Bo{token}") == "Bo"
    assert strip_reasoning(f"Bo{token}<|im_end|> And") == "Bo"


def test_end_tokens_that_are_also_words_of_a_text_end_it_only_at_its_end() -> None:
    for token in ("</s>", "<eos>", "[/INST]"):
        assert strip_reasoning(f"a {token} b") == f"a {token} b"


# --- replies -----------------------------------------------------------------------------------------------------


def test_a_reply_is_what_is_left_and_keeps_whether_it_was_cut() -> None:
    for cut in (False, True):
        said = read_reply("<think>a</think>b", cut)
        assert (said, said.cut) == ("b", cut)
    assert ReplyText("b").cut is False
    assert read_reply("", cut=False) == ""
    assert read_reply(" \n", cut=False) == " \n"


@pytest.mark.parametrize("text", ["<think>a", "<think>a</think>", "<think>a</think> \n", "<|im_end|>"])
def test_a_reply_without_anything_said_is_none_and_says_what_to_do(text: str) -> None:
    with pytest.raises(UnreadableReplyError) as error:
        read_reply(text, cut=False)
    assert error.value.message == f"{UNFINISHED}; {ADVICE}"
