"""Exceptions in plug-ins that score answers: datasets, rewards and credit assignments."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from memskill_cli.errors import MemskillError, PluginError

PACKAGE = __name__.partition(".")[0]


@contextmanager
def plugin_errors(part: object, where: str) -> Iterator[None]:
    """Turns an exception in the code of ``part`` into a PluginError with one line of text.

    ``part`` is an object, a class or a function; ``where`` says what it was called for ("query q7"). The message has
    the function, the file and line, ``where``, and the exception's type and text. A MemskillError passes unchanged. So
    does every exception of a built-in part, because it is a defect of memskill.
    """
    try:
        yield
    except MemskillError:
        raise
    except Exception as error:  # code of a plug-in may raise anything
        if _is_builtin(part):
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        failed = PluginError(
            f"{_function(part, error)} failed for {where}: {what}",
            hint="correct the plug-in, then continue; --debug shows the traceback",
        )
        # A note and not the cause: causes are lost when an error is sent from a Ray worker.
        failed.add_note("".join(traceback.format_exception(error)))
        raise failed from None


def _is_builtin(part: object) -> bool:
    return str(getattr(part, "__module__", "")).partition(".")[0] == PACKAGE


def _function(part: object, error: Exception) -> str:
    """The function of the plug-in that memskill called, with its file and line.

    A function that is not written in Python has no frame; then it is the name of ``part``.
    """
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").partition(".")[0] != PACKAGE:
            return f"{_short(frame.f_code.co_qualname)} ({frame.f_code.co_filename}:{line})"
    return _short(getattr(part, "__qualname__", type(part).__qualname__))


def _short(qualified_name: str) -> str:
    return qualified_name.rpartition("<locals>.")[2]
