"""Secrets are found in whatever form they are echoed; other text is left alone."""

from __future__ import annotations

import base64
import io
import json
import logging
import string
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memskill_cli.config import load
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.utils import redaction
from memskill_cli.utils.redaction import (
    FRAGMENT,
    MASK,
    SHORTEST,
    RedactingStream,
    Secrets,
    redact_patterns,
    secrets_of,
    strip_credentials,
)

VERBATIM = ("as it is", "in capitals", "in small letters")
PRINTABLE = "".join(chr(code) for code in range(33, 127))
KEYS = st.text(PRINTABLE, min_size=SHORTEST, max_size=70)
FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in capitals": str.upper,
    "in small letters": str.lower,
    "percent-encoded": lambda key: quote(key, safe=""),
    "percent-encoded in part": lambda key: quote_plus(key, safe="/+:").lower(),
    "every character percent-encoded": lambda key: "".join(f"%{ord(c):02X}" for c in key),
    "in JSON": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "in JSON, all escaped": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "over two lines": lambda key: f"{key[: len(key) // 2]}\n    {key[len(key) // 2 :]}",
    "over lines, in JSON": lambda key: json.dumps(f"{key[:3]}\n{key[3:]}")[1:-1],
}
IN_BASE64: dict[str, Callable[[str], bytes]] = {
    "alone": lambda key: key.encode(),
    "as a user": lambda key: f"{key}:".encode(),
    "as a password": lambda key: f":{key}".encode(),
    "after a long user": lambda key: f"someone:{key}\n".encode(),
}


def runs(text: str) -> set[str]:
    length = min(len(text), FRAGMENT)
    return {text[i : i + length] for i in range(len(text) - length + 1)}


@pytest.mark.parametrize("form", FORMS)
@given(key=KEYS, before=st.text(max_size=30), after=st.text(max_size=30))
@example(key="sk-0123456789", before="%4", after="")
@example(key="1abcdefg", before="%4", after="2")
@example(key="%41%42%43%44", before="\\", after="\\")
@example(key="\\\\\\\\////", before="\\", after="")
def test_no_run_of_a_secret_survives_in_any_form(form: str, key: str, before: str, after: str) -> None:
    gap = "" if form in VERBATIM else " "  # half an escape before a whole one can be read in two ways
    echo = FORMS[form](key)
    clean = Secrets([key]).redact(f"{before}{gap}{echo}{gap}{after}")
    assert MASK in clean
    assert Secrets([key]).redact(echo) == MASK
    assert not [run for run in runs(echo) if run in clean and run not in f"{before} {after}"]


@pytest.mark.parametrize("form", IN_BASE64)
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@given(key=KEYS)
def test_no_run_of_a_secret_survives_in_base64(encode: Callable[[bytes], bytes], form: str, key: str) -> None:
    header = f"Basic {encode(IN_BASE64[form](key)).decode()}"
    clean = Secrets([key]).redact(header)
    assert MASK in clean
    left = clean.removeprefix("Basic ").replace(MASK, "")
    assert len(left) <= 12 + 8, "only what stands for the characters around the key"
    assert not runs(base64.b64encode(key.encode()).decode().rstrip("=")[:-1]) & runs(clean)


@given(keys=st.lists(KEYS, min_size=2, max_size=4), cut=st.tuples(st.integers(0, 50), st.integers(FRAGMENT, 70)))
def test_pieces_of_several_secrets_side_by_side(keys: list[str], cut: tuple[int, int]) -> None:
    pieces = [key[cut[0] : cut[0] + cut[1]] for key in keys]
    clean = Secrets(keys).redact("".join(keys) + " " + "".join(pieces))
    assert not [run for key in keys for run in runs(key) if run in clean and run not in MASK]


@given(text=st.text(max_size=300))
@example(text="\n\n  %41 \\u0041 \\n \\\\ %zz %")
def test_text_without_a_secret_is_left_as_it_is(text: str) -> None:
    assert Secrets(["sk-0123456789abcdefghijkl", "12-4_678"]).redact(text) == text
    assert Secrets([]).redact(text) == text
    assert Secrets(["short", ""]).redact(text) == text


def test_searching_takes_steps_in_proportion_to_the_text() -> None:
    """Counted as lines of Python run, since a clock depends on the machine; regular expressions have no such count."""
    import sys

    def steps(text: str) -> int:
        count = 0

        def tracer(frame: object, event: str, argument: object) -> Callable[..., object]:
            nonlocal count
            count += 1
            return tracer

        secrets = Secrets(["sk-0123456789abcdefghijkl", "aaaaaaaaaaaaa"])
        sys.settrace(tracer)  # type: ignore[arg-type]
        try:
            secrets.redact(text)
        finally:
            sys.settrace(None)
        return count

    for unit in ("a", "%61", "sk-012345678 ", "\n ", "xyz"):
        assert steps(unit * 2_000) < 2.2 * steps(unit * 1_000) + 100


@pytest.mark.parametrize(
    "unit",
    [
        "://",
        "http://a",
        "://a@",
        "?a",
        "?key",
        "&key=",
        "sk-",
        "sk-ab-cd-",
        "Bearer ",
        "api_key",
        "api-key: ",
        "eyJ.",
        "a@",
    ],
)
def test_patterns_do_not_run_away(unit: str) -> None:
    """A pattern of quadratic cost takes minutes here; the time is not measured, the test just ends."""
    redact_patterns(unit * 40_000)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("ProxyError at http://u:p4ss@proxy:3128/", f"ProxyError at http://{MASK}@proxy:3128/"),
        ("https://h/v1?key=abc&alt=sse", f"https://h/v1?key={MASK}&alt=sse"),
        ("https://h/f?X-Amz-Signature=ab12&x=1", f"https://h/f?X-Amz-Signature={MASK}&x=1"),
        ("for url 'https://h/f?sig=a%2Bb'", f"for url 'https://h/f?sig={MASK}'"),
        ("GET /v1?api-version=1&access_token=a.b-c", f"GET /v1?api-version=1&access_token={MASK}"),
        ("Authorization: Bearer abc.DEF-123", f"Authorization: Bearer {MASK}"),
        ("{'authorization': 'Basic dXNlcjpwYXNz1'}", f"{{'authorization': 'Basic {MASK}'}}"),
        ('"x-goog-api-key": "AIzaSyFoo1234"', f'"x-goog-api-key": "{MASK}"'),
        ("api-key=0123456789abcdef", f"api-key={MASK}"),
        ("Incorrect API key provided: sk-proj-Ab12Cd34Ef56Gh78Ij90.", f"Incorrect API key provided: {MASK}."),
        ("token hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345", f"token {MASK}"),
    ],
)
def test_what_looks_like_a_secret(text: str, clean: str) -> None:
    assert redact_patterns(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "no API key for openai/gpt-4o (role judge)",
        "set OPENAI_API_KEY, or use --api-key KEY or --keys FILE.toml",
        "hf-internal-testing/tiny-random-bert at /models/hf_cache_of_2024",
        "https://example.openai.azure.com/openai?api-version=2024-02-01",
        "mail me@example.org, or see http://127.0.0.1:8000/v1",
        "memskill train --run sk-experiments-of-2024-11",
        "Authorization: missing bearer token",
    ],
)
def test_what_does_not(text: str) -> None:
    assert redact_patterns(text) == text


def test_an_address_is_bared_of_what_nobody_else_should_read() -> None:
    assert strip_credentials("https://user:pass@host:1/v1?key=abc&n=2") == f"https://{MASK}@host:1/v1?key={MASK}&n=2"
    assert strip_credentials("http://host/v1?api-version=3") == "http://host/v1?api-version=3"


def test_which_variables_hold_secrets(tmp_path: Path) -> None:
    file = tmp_path / "token-file-1"
    file.touch()
    environ = {
        "OPENAI_API_KEY": "openai-key-1",
        "GROQ_API_KEY_12": "groq-key-12",
        "MEMSKILL_API_KEYS": "mem-key-1, mem-key-2",
        "HF_TOKEN": "hf_token_1",
        "WANDB_API_KEY": "wandb-key-1",
        "AWS_SECRET_ACCESS_KEY": "aws-secret/1",
        "AWS_SESSION_TOKEN": "aws-session-1",
        "AZURE_CLIENT_SECRET": "azure-secret-1",
        "CHROMA_PASSWORD": "pass-word-1",
        "HTTPS_PROXY": "http://user:proxy%2Dpass@proxy:3128",
        "DATABASE_URL": "postgres://u:data:b@se-1@host/db",
        # and none of these
        "MAX_TOKENS": "123456789",
        "SOME_TOKEN": "7-chars",
        "DB_PASSWORD": "postgresql",
        "AWS_WEB_IDENTITY_TOKEN": str(file),
        "TOKENIZERS_PARALLELISM": "false-or-1",
        "HOME": "/home/user-1234",
        "KEYBOARD": "us-intl-1",
    }
    assert secrets_of(environ) == {
        *("openai-key-1", "groq-key-12", "mem-key-1", "mem-key-2", "hf_token_1", "wandb-key-1", "aws-secret/1"),
        *("aws-session-1", "azure-secret-1", "pass-word-1", "proxy%2Dpass", "proxy-pass", "data:b@se-1"),
    }


KEY = "sk-guarded-" + string.ascii_letters[:30] + "0123456789"


def test_nothing_that_libraries_print_on_a_guarded_stream_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging, warnings, threads that die, chained exceptions with notes: whoever writes, the stream cleans."""
    inner = io.StringIO()
    stream = RedactingStream(inner)
    redaction.remember([KEY])
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(warnings, "showwarning", _show)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    try:
        logger.error("Task exception was never retrieved: %r", ValueError(KEY), exc_info=_failure())
    finally:
        logger.removeHandler(handler)
    warnings.showwarning(UserWarning(KEY), UserWarning, "f.py", 1)
    thread = threading.Thread(target=_fail)
    thread.start()
    thread.join()
    traceback.print_exception(_failure())
    stream.writelines([KEY, "\n"])
    written = inner.getvalue()
    assert written.count("as it says") == 3, "by the logger, the thread and the traceback"
    assert written.count(MASK) >= 3  # litellm, once imported, also masks what loggers say, in a way of its own
    assert not [run for run in runs(KEY) if run in written]
    assert stream.encoding == inner.encoding
    assert not stream.isatty()


def test_a_runs_log_shows_no_secret_of_what_is_told_or_ends_it(tmp_path: Path) -> None:
    redaction.remember([KEY])
    run = RunDir.create(tmp_path, "r", load(), "digest")
    with suppress(RuntimeError), run.logged(lambda text: None) as notice:
        notice(f"told {KEY}")
        raise RuntimeError(f"nobody expected {KEY}")
    assert run.log.read_text().count(MASK) == 2
    assert not [part for part in runs(KEY) if part in run.log.read_text()]


def _show(message: object, *_: object) -> None:
    import sys

    print(message, file=sys.stderr)


def _fail() -> None:
    try:
        raise KeyError(KEY)
    except KeyError as error:
        failure = RuntimeError(f"as it says: {KEY}")
        failure.add_note(f"a note with {KEY}")
        raise failure from error


def _failure() -> BaseException:
    try:
        _fail()
    except RuntimeError as error:
        return error
    raise AssertionError


KEY = "sk-proj-A1b2C3d4E5f6/G7h8+I9"
ENCODINGS: dict[str, Callable[[str], str]] = {
    "hexadecimal": lambda key: key.encode().hex(),
    "hexadecimal in capitals": lambda key: key.encode().hex().upper(),
    "decimal entities": lambda key: "".join(f"&#{ord(c)};" for c in key),
    "hexadecimal entities": lambda key: "".join(f"&#x{ord(c):x};" for c in key),
    "named entities": lambda key: key.replace("/", "&#47;"),
    "C escapes": lambda key: "".join(f"\\x{ord(c):02x}" for c in key),
    "reversed": lambda key: key[::-1],
    "spaced": " ".join,
    "spaced with commas": ", ".join,
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("form", ENCODINGS)
def test_a_key_is_found_in_the_encodings_that_are_promised(form: str, whole: bool) -> None:
    echo = ENCODINGS[form](KEY)
    assert Secrets([KEY], whole=whole).redact(f"bad key ({echo}) given") == f"bad key ({MASK}) given"


@given(st.text("ab c,.-&#x1;\\", max_size=200))
def test_text_without_the_key_is_left_alone(text: str) -> None:
    assert Secrets([KEY]).redact(text) == text


def test_only_whole_values_are_removed_with_whole() -> None:
    secrets = Secrets(["organization-stage-2024-internal"], whole=True)
    assert secrets.redact("the organization-stage-2024 met") == "the organization-stage-2024 met"
    assert secrets.redact("(organization-stage-2024-internal)") == f"({MASK})"
