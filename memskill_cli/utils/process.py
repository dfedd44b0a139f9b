"""Changes of the state of the process: environment variables, loggers, warnings, attributes of modules.

The command line owns its process (:func:`own`), so its changes stay. A library call borrows the process of its caller
(:func:`borrowed`): changes are undone when the last running call ends. Code that needs a change requests it each time
(:func:`change`, or a helper below) and never undoes it.

A value that other code has set in the meantime is not undone.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

Undo = Callable[[], None]

_QUIET = logging.CRITICAL + 1


class _State:
    """The state of this module; one instance per process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.owned = False
        self.borrowers = 0
        self.undo: dict[Hashable, Undo] = {}  # in the order of the changes
        self.variables: dict[str, str] = {}  # environment variables that were set, with their last values


_now = _State()


def own() -> None:
    """Declare that this process belongs to memskill, so that changes stay until it ends."""
    _now.owned = True


def owned() -> bool:
    """Whether this is the process of a memskill command."""
    return _now.owned


def is_borrowed() -> bool:
    """Whether a library call runs in the process of its caller."""
    return _now.borrowers > 0 and not _now.owned


@contextmanager
def borrowed() -> Iterator[None]:
    """Run the block in a caller's process. Blocks may overlap: the last one to end undoes the changes, newest first."""
    with _now.lock:
        _now.borrowers += 1
    try:
        yield
    finally:
        with _now.lock:
            _now.borrowers -= 1
            if not _now.borrowers and not _now.owned:
                while _now.undo:
                    _now.undo.popitem()[1]()


def change(name: Hashable, make: Callable[[], Undo]) -> None:
    """Make a change unless it is already made. ``make`` returns a function that undoes it, and must import nothing."""
    with _now.lock:
        if name not in _now.undo:
            _now.undo[name] = make()


def changed(name: Hashable) -> bool:
    """Whether the change called ``name`` is in force."""
    return name in _now.undo


def set_attribute(holder: Any, name: str, value: Any) -> None:
    """Set ``holder.name`` to ``value``."""

    def make() -> Undo:
        missing = object()
        before = vars(holder).get(name, missing)
        setattr(holder, name, value)

        def undo() -> None:
            if vars(holder).get(name) is not value:
                return
            if before is missing:
                delattr(holder, name)
            else:
                setattr(holder, name, before)

        return undo

    change(("attribute", id(holder), name), make)


def set_variable(name: str, value: str, *, replace: bool = False) -> None:
    """Set an environment variable. An existing value is kept unless ``replace`` is True."""

    def make() -> Undo:
        before = os.environ.get(name)
        return lambda: _restore_variable(name, before, _now.variables.pop(name, ""))

    change(("variable", name), make)
    if replace or name not in os.environ:
        os.environ[name] = _now.variables[name] = value


def keep_variable(name: str) -> None:
    """Restore the present value of an environment variable at the end, although a library will set it."""

    def make() -> Undo:
        before = os.environ.get(name)
        return lambda: _restore_variable(name, before, os.environ.get(name, ""))

    change(("variable", name), make)


def silence(logger: str, level: int = _QUIET) -> None:
    """Drop records of ``logger`` below ``level`` (by default all), because they may contain keys or prompts."""

    def make() -> Undo:
        found = logging.getLogger(logger)
        before = found.level
        found.setLevel(level)

        def undo() -> None:
            if found.level == level:
                found.setLevel(before)

        return undo

    change(("logger", logger), make)


def filter_records(logger: str, keep: Callable[[logging.LogRecord], bool]) -> None:
    """Drop the records of ``logger`` for which ``keep`` is False."""

    def make() -> Undo:
        found = logging.getLogger(logger)
        found.addFilter(keep)
        return lambda: found.removeFilter(keep)

    change(("filter", logger), make)


def ignore_warnings(message: str, category: type[Warning] = Warning) -> None:
    """Hide warnings that begin with ``message``, a regular expression."""

    def make() -> Undo:
        before = list(warnings.filters)
        warnings.filterwarnings("ignore", message, category)
        added = warnings.filters[0]

        def undo() -> None:
            if added not in before and added in warnings.filters:
                warnings.filters.remove(added)  # type: ignore[attr-defined]

        return undo

    change(("warnings", message), make)


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Set environment variables during the block, unless they are set already. Some libraries read them on import."""
    missing = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name, value in missing.items():
            _restore_variable(name, None, value)


def _restore_variable(name: str, before: str | None, ours: str) -> None:
    if os.environ.get(name) != ours:
        return
    if before is None:
        del os.environ[name]
    else:
        os.environ[name] = before
