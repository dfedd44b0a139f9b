"""Replace e-mail addresses, phone numbers, card numbers and keys in texts (``prepare --redact``).

These are patterns, with a check digit for cards. They find no names, postal addresses, dates of birth, account or
passport numbers, and no phone numbers or addresses that are written in words. The time is linear in the length of a
text. Libraries for this purpose need a language model or are no longer kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from memskill_cli.utils.redaction import MASK, redact_patterns

EMAIL, PHONE, CARD, KEY = "[email]", "[phone]", "[card]", MASK
MASKS = (EMAIL, PHONE, CARD, KEY)

_EMAIL = re.compile(r"(?<![\w.+%'-])[\w+%'-][\w.+%'-]{0,63}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)", re.S
)
# The first digits and the lengths of the card networks, so that times in milliseconds and other long numbers are kept.
_CARD = re.compile(r"(?<![\w.-])(?:4|5[1-5]|2[2-7]|3[0-9]|6)\d?(?:[ -]?\d){10,17}(?![\w-])")
_CARD_LENGTHS = range(13, 20)
_NOT_A_DATE = r"(?!\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b)(?!\d{4}[./-]\d{1,2}[./-]\d{1,2}\b)"
_PHONE = re.compile(
    rf"(?<![\w.,/+-]){_NOT_A_DATE}(?:"
    r"(?:\+|00[ ]?)[1-9](?:[ ()./-]{0,3}\d){6,14}"  # international
    r"|(?:\(\d{3}\)[ ]?|\d{3}[-. ])\d{3}[-. ]\d{4}"  # North America
    r"|\(?0\d{1,5}\)?(?:[ /.-]?\d{2,8}){1,4}"  # with the 0 of a national number
    r")(?![\w]|[-/.]\d)"
)
_PHONE_DIGITS = range(9, 17)


def redact_personal(text: str) -> tuple[str, Counter[str]]:
    """``text`` with masks in place of what was found, and how often each mask was set."""
    found: Counter[str] = Counter()
    kept = text.count(KEY)
    text = redact_patterns(_PRIVATE_KEY.sub(KEY, text))
    found[KEY] += text.count(KEY) - kept
    text = _masked(_EMAIL, text, EMAIL, lambda match: True, found)
    text = _masked(_CARD, text, CARD, lambda match: _is_card(_digits(match)), found)
    text = _masked(_PHONE, text, PHONE, lambda match: len(_digits(match)) in _PHONE_DIGITS, found)
    return text, +found


def _masked(
    pattern: re.Pattern[str], text: str, mask: str, accepted: Callable[[str], bool], found: Counter[str]
) -> str:
    def replace(match: re.Match[str]) -> str:
        if not accepted(match[0]):
            return match[0]
        found[mask] += 1
        return mask

    return pattern.sub(replace, text)


def _digits(text: str) -> str:
    return "".join(filter(str.isdecimal, text))


def _is_card(digits: str) -> bool:
    """Whether a number has the length of a card number and its check digit is right (Luhn)."""
    if len(digits) not in _CARD_LENGTHS:
        return False
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0
