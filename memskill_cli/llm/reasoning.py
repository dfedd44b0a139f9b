"""Removes reasoning from the text of replies, for every role.

Model families mark reasoning in different ways: tags (``<think>``, ``[THINK]``, ``◁think▷``), channels (harmony), or
special tokens. A reply that ends inside its reasoning, or contains nothing else, is an error. litellm knows few
of these marks, and takes a reply that ends inside them for an answer.
"""

from __future__ import annotations

import re

from memskill_cli.errors import UnreadableReplyError

_WORDS = (
    r"(?:[a-z]{1,12}[:_])?think(?:ing)?|thoughts?|thought_process|reasoning|reason|reflection|analysis|scratchpad|"
    r"seed:cot_budget_reflect|antthinking|inner_?thoughts?|inner_?monologue|internal_?(?:thoughts?|monologue|reasoning)|"
    r"chain_?of_?thought"
)
_MARK = re.compile(
    rf"""\n
    | <\s{{0,3}}(?P<tag>/?)\s{{0,3}}(?:{_WORDS})(?:\s[^<>\n]{{0,80}})?>
    | \[(?P<bracket>/?)(?:THINK|THINKING|REASONING)\]
    | [◁◀](?P<triangle>/?)(?:think|thinking)[▷▶]
    | <\|(?P<token>begin|end)_of_(?:thought|thinking|reasoning)\|>
    | <\|(?P<upper>START|END)_THINKING\|>
    | <\|(?P<bar>/?)(?:think|thinking)\|>
    | (?P<open><\|inner_prefix\|>|<\|channel>thought\b) | (?P<end><\|inner_suffix\|>|<channel\|>)
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""A line break, an opening mark or a closing mark."""
_QUOTING = re.compile(
    r"[\s>#*+•\d.)(_`-]*(?:new|updated)?[ _-]?(?:memory|content|text)(?:[ _-]?item)?[*_`]{0,3}\s*[:：=–—-]",
    re.IGNORECASE,
)
"""Start of a line with a memory text. A mark in it is text ("MEMORY: Bo asked what <think> does")."""
_MORE_TEXT = re.compile(r"[ \t,.;:]*(?!ACTION|INSERT|UPDATE|DELETE|NO-?OP)[^\s{\[]")
_OPENING_QUOTES = tuple("`\"'“‘")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]{0,200}?(?:<\|constrain\|>[^<]{0,50})?<\|message\|>")
_BEFORE_CHANNEL = re.compile(r"(?:\A|<\|(?:start|end)\|>)\s*(?:assistant)?\s*\Z")
_CHANNEL_END = re.compile(r"<\|(?:start|end|return|call|channel)\|>")
_BARE_HARMONY = re.compile(r"\A\s*(?:assistant)?analysis(?P<rest>.*)\Z", re.DOTALL)
_BARE_UNFINISHED = re.compile(r"\A(?:[A-Z0-9\"'(*]|we |the |i )")
_BARE_FINAL = re.compile(r"assistantfinal")
_START = re.compile(
    r"\A(?:\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\|begin_of_solution\|>|<\|START_RESPONSE\|>"
    r"|<\|START_TEXT\|>|<\|begin_of_box\|>|<\|assistant\|>|<\|(?:im_start|start)\|>(?:assistant)?|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model))+"
)
_END = re.compile(
    r"<\|(?:im_end|im_start|eot_id|eom_id|eot|end|return|endoftext|end_of_text|end_of_turn|end_of_solution"
    r"|END_RESPONSE|END_TEXT|end_of_box|END_OF_TURN_TOKEN|start_header_id|start|user|assistant|system)\|>|<｜end▁of▁sentence｜>|\[\|endofturn\|\]"
)
_TAIL_END = re.compile(r"(?:</s>|<eos>|<end_of_turn>|\[/INST\])\s*(?=\Z|<s>|\[INST\]|<start_of_turn>)")

UNFINISHED = "the reply ends inside its reasoning, so it says nothing"
ADVICE = "raise the role's max_tokens (--set models.<role>_max_tokens=N) or switch the model's reasoning off"


class ReplyText(str):
    """A reply without its reasoning. ``cut``: the token limit ended it, possibly in the middle of a word."""

    __slots__ = ("cut",)
    cut: bool

    def __new__(cls, text: str, cut: bool = False) -> ReplyText:
        made = super().__new__(cls, text)
        made.cut = cut
        return made


def read_reply(text: str, cut: bool) -> ReplyText:
    """The reply without reasoning and end tokens.

    Raises UnreadableReplyError for a reply that ends inside its reasoning, or contains nothing else.
    """
    visible = strip_reasoning(text)
    if visible is None or (text.strip() and not visible.strip()):
        raise UnreadableReplyError(f"{UNFINISHED}; {ADVICE}")
    return ReplyText(visible, cut)


def strip_reasoning(text: str) -> str | None:
    """``text`` without reasoning, for all known marks; None if it ends inside its reasoning.

    After a closing mark without an opening one, everything before it is reasoning. A mark inside quotation marks, a
    JSON line or the line of a memory is text.
    """
    visible = _final_channel(text)
    visible = None if visible is None else _outside_marks(visible)
    return None if visible is None else _without_tokens(visible)


def _final_channel(text: str) -> str | None:
    """The last ``final`` channel of a harmony reply; None if there are channels and none of them is ``final``."""
    text = text.removeprefix("\ufeff")
    channels = [found for found in _CHANNEL.finditer(text) if _BEFORE_CHANNEL.search(text[: found.start()][-60:])]
    if channels and _BEFORE_CHANNEL.fullmatch(text[: channels[0].start()]):
        finals = [channel for channel in channels if channel[1] == "final"]
        return _CHANNEL_END.split(text[finals[-1].end() :], maxsplit=1)[0] if finals else None
    if text.lstrip().startswith("<|channel|>"):
        return None  # the token limit ended it in its first channel
    bare = _BARE_HARMONY.match(text)  # the server removed the special tokens
    if bare is None:
        return text
    if _BARE_FINAL.search(bare["rest"]):
        return _BARE_FINAL.split(bare["rest"])[-1]
    return None if _BARE_UNFINISHED.match(bare["rest"]) else text


def _outside_marks(text: str) -> str | None:
    kept: list[str] = []
    start = line = 0
    inside = pair_is_text = False
    gives_memory: bool | None = None  # for the current line; decided at its first mark
    quotes = counted = 0  # double quotes on the line, up to position ``counted``
    for mark in _MARK.finditer(text):
        if mark[0] == "\n":
            line = counted = mark.end()
            gives_memory, pair_is_text, quotes = None, False, 0
            continue
        quotes += text.count('"', counted, mark.start())
        counted = mark.start()
        if gives_memory is None:
            gives_memory = bool(_QUOTING.match(text[line : mark.start()]))
        quoted = quotes % 2 == 1 or text[max(0, mark.start() - 1) : mark.start()] in _OPENING_QUOTES
        if _closes(mark):
            if not inside and (pair_is_text or quoted or (gives_memory and _continues(text, mark.end()))):
                pair_is_text = False
                continue
            if not inside:
                kept.clear()  # the opening mark was in the prompt
            start, inside = mark.end(), False
        elif not inside:
            pair_is_text = gives_memory or quoted
            if not pair_is_text:
                kept.append(text[start : mark.start()])
                inside = True
    return None if inside else "".join([*kept, text[start:]])


def _closes(mark: re.Match[str]) -> bool:
    kind = mark.lastgroup or ""
    return kind == "end" or (kind != "open" and mark[kind].lower() in ("/", "end"))


def _continues(text: str, at: int) -> bool:
    """Whether the line of a memory continues as text after a mark, without an action or JSON."""
    return bool(_MORE_TEXT.match(text, at))


def _without_tokens(text: str) -> str:
    """``text`` up to the first end token, without the tokens at the start of a turn."""
    visible = _START.sub("", text)
    if ended := _END.search(visible):
        visible = visible[: ended.start()]
    if ended := _TAIL_END.search(visible):
        visible = visible[: ended.start()]
    return visible
