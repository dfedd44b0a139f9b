"""Reasoning that models write into the text of a reply is not part of the reply: it is removed, for every role.

Each family of models marks its reasoning in another way: tags (``<think>``, ``[THINK]``, ``◁think▷``), channels
(harmony), or special tokens. A reply that ends inside its reasoning, or has nothing else, is no reply at all.
"""

from __future__ import annotations

import re

from memskill_cli.errors import UnreadableReplyError

_WORDS = (
    "think|thinking|thought|thoughts|reasoning|reason|reflection|analysis|scratchpad|"
    "seed:think|inner_?thoughts?|internal_?(?:thoughts?|monologue|reasoning)|chain_?of_?thought"
)
_MARK = re.compile(
    rf"""\n
    | <\s*(?P<tag>/?)\s*(?:{_WORDS})\s*>
    | \[(?P<bracket>/?)(?:THINK|THINKING|REASONING)\]
    | [◁◀](?P<triangle>/?)(?:think|thinking)[▷▶]
    | <\|(?P<token>begin|end)_of_(?:thought|thinking|reasoning)\|>
    | <\|(?P<upper>START|END)_THINKING\|>
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""A line break, an opening mark or a closing mark."""
_QUOTING = re.compile(
    r"[\s>#*+•\d.)(_`-]*(?:new|updated)?[ _-]?(?:memory|content|text)(?:[ _-]?item)?[*_`]{0,3}\s*[:：=–—-]",
    re.IGNORECASE,
)
"""A line that gives a memory: a mark inside it is part of what was said ("MEMORY: Bo asked what <think> does")."""
_OPENING_QUOTES = tuple("`\"'“‘")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]{0,200}?(?:<\|constrain\|>[^<]{0,50})?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:start|end|return|call|channel)\|>")
_BARE_HARMONY = re.compile(r"\A\s*(?:assistant)?analysis(?=[A-Z0-9\"'(*])(?P<rest>.*)\Z", re.DOTALL)
_BARE_FINAL = re.compile(r"assistantfinal")
_START = re.compile(
    r"\A(?:\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\|begin_of_solution\|>|<\|START_RESPONSE\|>"
    r"|<\|(?:im_start|start)\|>(?:assistant)?|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model))+"
)
_END = re.compile(
    r"<\|(?:im_end|im_start|eot_id|eom_id|eot|end|return|endoftext|end_of_text|end_of_turn|end_of_solution"
    r"|END_RESPONSE|END_OF_TURN_TOKEN|start_header_id|start|user|assistant|system)\|>|<｜end▁of▁sentence｜>"
)
_TAIL_END = re.compile(r"(?:</s>|<eos>|<end_of_turn>|\[/INST\])\s*(?=\Z|<s>|\[INST\]|<start_of_turn>)")

UNFINISHED = "the reply ends inside its reasoning, so it says nothing"
ADVICE = "raise the role's max_tokens (--set models.<role>_max_tokens=N) or switch the model's reasoning off"


class ReplyText(str):
    """A reply without its reasoning. ``cut`` says that the token limit ended it, perhaps in the middle of a word."""

    __slots__ = ("cut",)
    cut: bool

    def __new__(cls, text: str, cut: bool = False) -> ReplyText:
        made = super().__new__(cls, text)
        made.cut = cut
        return made


def read_reply(text: str, cut: bool) -> ReplyText:
    """What a model said, without its reasoning and end tokens.

    Raises UnreadableReplyError for a reply that ends inside its reasoning, or that consists of nothing else.
    """
    said = strip_reasoning(text)
    if said is None or (text.strip() and not said.strip()):
        raise UnreadableReplyError(f"{UNFINISHED}; {ADVICE}")
    return ReplyText(said, cut)


def strip_reasoning(text: str) -> str | None:
    """``text`` without reasoning, in whatever marks it stands; None if it ends before its reasoning does.

    A closing mark without an opening one ends reasoning that began with the text. A mark inside a quotation, a line of
    JSON or the line of a memory is text.
    """
    said = _final_channel(text)
    said = None if said is None else _outside_marks(said)
    return None if said is None else _without_tokens(said)


def _final_channel(text: str) -> str | None:
    """The last ``final`` channel of a harmony reply; None if there are channels and none of them is ``final``."""
    channels = list(_CHANNEL.finditer(text))
    if channels:
        finals = [channel for channel in channels if channel[1] == "final"]
        return _CHANNEL_END.split(text[finals[-1].end() :], maxsplit=1)[0] if finals else None
    bare = _BARE_HARMONY.match(text)  # a server has dropped the special tokens
    if bare is None:
        return None if "<|channel|>" in text else text
    return _BARE_FINAL.split(bare["rest"])[-1] if _BARE_FINAL.search(bare["rest"]) else None


def _outside_marks(text: str) -> str | None:
    kept: list[str] = []
    start = line = 0
    inside = pair_is_text = False
    line_is_text: bool | None = None  # what stands before a line's first mark decides for the line
    for mark in _MARK.finditer(text):
        if mark[0] == "\n":
            line, line_is_text, pair_is_text = mark.end(), None, False
        elif _closes(mark):
            if pair_is_text and not inside:
                pair_is_text = False
                continue
            if not inside:
                kept.clear()  # the opening mark stood in the prompt
            start, inside = mark.end(), False
        elif not inside:
            if line_is_text is None:
                line_is_text = _is_text(text[line : mark.start()])
            pair_is_text = line_is_text or text[max(0, mark.start() - 1) : mark.start()] in _OPENING_QUOTES
            if not pair_is_text:
                kept.append(text[start : mark.start()])
                inside = True
    return None if inside else "".join([*kept, text[start:]])


def _closes(mark: re.Match[str]) -> bool:
    kind = mark.lastgroup or ""
    return mark[kind].lower() in ("/", "end")


def _is_text(before: str) -> bool:
    """Whether the marks on a line that begins with ``before`` are part of what the line says."""
    return bool(_QUOTING.match(before)) or before.lstrip()[:1] in ("{", "[", '"')


def _without_tokens(text: str) -> str:
    """``text`` up to the first end token, without the tokens that begin a turn."""
    said = _START.sub("", text)
    if ended := _END.search(said):
        said = said[: ended.start()]
    if ended := _TAIL_END.search(said):
        said = said[: ended.start()]
    return said
