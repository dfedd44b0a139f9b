"""A limit of this machine is told as such, wherever in a chain of errors it is."""

from __future__ import annotations

import errno

import httpx
import pytest

from memskill_cli.cli.console import explain
from memskill_cli.llm import error_mapping
from memskill_cli.llm.keys import Deployment
from memskill_cli.utils.resource_limits import limit_reached


def _wrapped(cause: BaseException) -> Exception:
    """As a library raises it: with another error in front."""
    try:
        try:
            raise cause
        except BaseException as error:
            raise httpx.ConnectError("all connection attempts failed") from error
    except httpx.ConnectError as error:
        return error


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files"),
        (OSError(errno.ENFILE, "File table overflow"), "too many open files"),
        (RuntimeError("can't start new thread"), "no more threads"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    ],
)
def test_a_limit_is_told_as_such(cause: BaseException, told: str) -> None:
    deployment = Deployment("openai#1", "openai/m", "http://localhost:1/v1", {})
    for error in (cause, _wrapped(cause)):
        mapped = error_mapping.explain(error, "answer", deployment, str)
        assert mapped.message.startswith(told)
        assert "server" not in mapped.message + mapped.hint
        line, hint, code = explain(error)
        assert line.startswith(told)
        assert hint
        assert code == 1
        assert "defect" not in hint


def test_other_errors_are_no_limits() -> None:
    for error in (ValueError("x"), ConnectionRefusedError(errno.ECONNREFUSED, "refused"), KeyError("out of memory")):
        assert limit_reached(_wrapped(error)) is None


def test_a_chain_without_end_is_no_trap() -> None:
    one, other = ValueError("a"), ValueError("b")
    one.__context__, other.__context__ = other, one
    assert limit_reached(one) is None
