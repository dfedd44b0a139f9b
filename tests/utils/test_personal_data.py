"""What ``--redact`` replaces, and what it leaves alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.utils.personal_data import CARD, EMAIL, KEY, MASKS, PHONE, redact_personal


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to anna.b+x@mail.example.co.uk, please", f"write to {EMAIL}, please"),
        ("<grüße@münchen.de>", f"<{EMAIL}>"),
        ("mailto:a@b.org?subject=x", f"mailto:{EMAIL}?subject=x"),
        ("+44 113 496 0123", PHONE),
        ("+49 (0)30 901820", PHONE),
        ("tel:+1-555-010-9999.", f"tel:{PHONE}."),
        ("(555) 123-4567 or 555.123.4567", f"{PHONE} or {PHONE}"),
        ("0113 496 0123", PHONE),
        ("00441134960123", PHONE),
        ("030/901820-44", PHONE),
        ("card 4111 1111 1111 1111, exp 01/27", f"card {CARD}, exp 01/27"),
        ("378282246310005", CARD),
        ("5555-5555-5555-4444", CARD),
        ("sk-abcdefghij1234567890abcd", KEY),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY----- end", f"{KEY} end"),
        ("https://anna:secret@example.org/x", f"https://{KEY}@example.org/x"),
    ],
)
def test_what_is_replaced(text, redacted):
    assert redact_personal(text)[0] == redacted


@pytest.mark.parametrize(
    "text",
    [
        "on 2025-03-04 at 09:34, 04.03.2025 10:30, 4/3/2025",
        "1741080840 and 1741080840000",
        "4111 1111 1111 1112",  # the check digit is wrong
        "1234567812345670",  # no card network
        "pi is 3.14159265358979, and 0.123456789",
        "version 1.2.3, address 192.168.100.200, port 8080",
        "room 0123, iPhone 15, 10.000.000 people, 1,350 euros",
        "meet me @ the station, a@b, @anna",
        "in Leeds since 1991–2025",
    ],
)
def test_what_is_kept(text):
    assert redact_personal(text) == (text, {})


def test_what_was_replaced_is_counted():
    assert redact_personal("a@b.org, c@d.org, +44 113 496 0123")[1] == {EMAIL: 2, PHONE: 1}
    assert redact_personal(f"already {KEY}")[1] == {}


@given(st.text())
def test_any_text_twice_is_as_once(text):
    once, _ = redact_personal(text)
    assert redact_personal(once)[0].count("@") <= once.count("@")
    if not any(mask in text for mask in MASKS):
        assert (
            redact_personal(once)[0] == once or redact_personal(redact_personal(once)[0])[0] == redact_personal(once)[0]
        )
