"""Parts by name, to which users can add: datasets, methods, rewards and others.

A part is built in, registered by a plug-in file (``--plugin FILE.py``), or an entry point of an installed package. Its
module is imported when the part is requested.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from memskill_cli.errors import MemskillError, PluginError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")
P = TypeVar("P")


@dataclass(frozen=True)
class Plugin:
    """A plug-in file that this process has run; ``parts`` are what it registered ("reward brevity")."""

    path: Path
    sha256: str
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name


_PREFIX = "memskill_plugin_"
"""Begins the module names of plug-in files."""
_loaded: dict[Path, Plugin] = {}
_packages: set[str] = set()
"""The top-level packages of the entry points that were loaded."""
_running: list[tuple[str, list[tuple[Registry[Any], str]]]] = []
"""The code that is being loaded and may register parts: a plug-in file (its sha256) or a module of an installed package
(the package's name and version), each with the parts that it has registered so far."""


class Registry(Generic[T]):
    """Parts of one kind by name.

    ``kind`` is the word for messages ("dataset"); ``group`` is the group of entry points; ``builtin`` maps a name to
    ``module:attribute``; ``own_hint`` says how to use one's own part.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str], own_hint: str = "") -> None:
        self.kind, self.group = kind, group
        self._builtin: dict[str, str | T] = dict(builtin)
        self._registered: dict[str, T] = {}
        self._sources: dict[str, str] = {}
        self.own_hint = own_hint or f"to use your own {kind}: --plugin FILE.py"

    def register(self, name: str, part: T) -> T:
        """Add a part under ``name``. Raises PluginError if another part has this name."""
        if self._is_entry_point(name, part):
            return part
        if name in self._builtin or self._registered.get(name, part) is not part:
            raise PluginError(f"there is already a {self.kind} called {name}", hint="use another name in the plug-in")
        if name in self._registered:
            return part
        self._registered[name] = part
        self._sources[name] = _running[-1][0] if _running else _source_digest(part)
        if _running:
            _running[-1][1].append((self, name))
        return part

    def include(self, name: str, part: T) -> None:
        """Add a part of memskill itself that is made while it runs, or replace the one included before."""
        self._builtin[name] = part

    def _is_entry_point(self, name: str, part: object) -> bool:
        """Whether an installed package has the part as an entry point. Then its identity is the package's version."""
        entry = self._entry_points().get(name)
        return entry is not None and entry.module == getattr(part, "__module__", "")

    def named(self, name: str) -> Callable[[P], P]:
        """A decorator that registers a class or a function under ``name``."""

        def add(part: P) -> P:
            registered: Any = part
            self.register(name, registered)
            return part

        return add

    def unregister(self, name: str) -> None:
        """Remove a part that :meth:`register` added."""
        del self._registered[name], self._sources[name]

    def names(self) -> list[str]:
        """All names: built-in, registered, and those of installed packages."""
        return list(dict.fromkeys([*self._builtin, *self._registered, *self._entry_points()]))

    def check(self, name: str, setting: str = "") -> None:
        """Raise UsageError, with the nearest name, if there is no such part. ``setting``: the setting that names it."""
        if name not in self._builtin and name not in self._registered:
            try:
                self._entry_point(name)
            except UsageError as error:
                raise UsageError(f"{setting}: {error.message}" if setting else error.message, hint=error.hint) from None

    def identity(self, name: str) -> str:
        """Identifies the version of a part: "" for a built-in one (the version of memskill is recorded elsewhere), the
        sha256 of a plug-in file, or the name and version of an installed package."""
        if name in self._builtin:
            return ""
        return self._sources[name] if name in self._registered else self.origin(name)

    def origin(self, name: str) -> str:
        """Where a part comes from: ``memskill``, ``plug-in``, or the name and version of an installed package.

        Raises UsageError if there is no such part.
        """
        if name in self._builtin:
            return "memskill"
        if name in self._registered:
            return "plug-in"
        package = self._entry_point(name).dist
        return f"{package.name} {package.version}" if package else "installed package"

    def get(self, name: str) -> T:
        """The part called ``name``.

        Raises UsageError, with the nearest name, if there is none; PluginError if its package cannot be loaded.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self._builtin:
            place = self._builtin[name]
            if not isinstance(place, str):
                return place
            module, _, attribute = place.partition(":")
            part: T = getattr(importlib.import_module(module), attribute)
            return part
        entry = self._entry_point(name)
        _running.append(
            (self.origin(name), [])
        )  # so that parts which the module registers get the version of its package
        try:
            loaded: T = entry.load()
            _packages.add(entry.module.partition(".")[0])
        except Exception as error:  # third-party code may raise any exception; the message must name the package
            raise PluginError(
                f"{self.kind} {name} ({entry.value}) cannot be loaded: {_what(error)}",
                hint=f"see the traceback with: python -c 'import {entry.module}'",
            ) from error
        finally:
            _running.pop()
        return loaded

    def _entry_point(self, name: str) -> EntryPoint:
        found = self._entry_points().get(name)
        if found is None:
            near = difflib.get_close_matches(name.lower(), self.names(), n=1, cutoff=0.4)
            sure = difflib.get_close_matches(name.lower(), self.names(), n=1, cutoff=0.7)
            hint = f"did you mean {near[0]}?" + ("" if sure else f" {self.own_hint}") if near else self.own_hint
            raise UsageError(f"no {self.kind} is called {name}; there are {', '.join(self.names())}", hint=hint)
        return found

    def _entry_points(self) -> Mapping[str, EntryPoint]:
        return _entry_points(self.group)


@functools.cache
def _entry_points(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of all installed packages, by name. Finding them takes about 30 ms."""
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=group)}


def load_plugins(files: Iterable[Path] | None, notice: Callable[[str], None] = lambda text: None) -> tuple[Plugin, ...]:
    """Run several plug-in files, in order. ``notice`` is called for each that was not loaded before."""
    plugins = []
    for file in files or ():
        known = file.expanduser().resolve() in _loaded
        plugins.append(load_plugin(file))
        if not known:
            what = ", ".join(plugins[-1].parts) or "it registers nothing"
            notice(f"plug-in {plugins[-1].name} is loaded: {what}")
    return tuple(plugins)


def loaded_plugins() -> tuple[Plugin, ...]:
    """The plug-in files that this process has run, in order."""
    return tuple(_loaded.values())


def files_of(part: str) -> list[Path]:
    """The plug-in files that registered ``part`` ("dataset x"). A path in the current folder is relative to it."""
    here = Path.cwd()
    found = (plugin.path for plugin in _loaded.values() if part in plugin.parts)
    return [path.relative_to(here) if path.is_relative_to(here) else path for path in found]


def load_plugin(file: Path) -> Plugin:
    """Run a Python file that registers parts. It is ordinary code, run with the rights of the user.

    A file is run once in a process. Raises PluginError if it does not exist or raises an exception.
    """
    path = file.expanduser().resolve()
    if path in _loaded:
        return _loaded[path]
    if not path.is_file():
        raise PluginError(f"--plugin {file}: no such file", hint="name a Python file: --plugin my_dataset.py")
    # The same name in every process, so that objects sent to another process find their classes there.
    name = f"{_PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"--plugin {file}: not a Python file", hint="its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module during its import
    digest, parts = _sha256(path), list[tuple[Registry[Any], str]]()
    _running.append((digest, parts))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # third-party code may raise any exception
        del sys.modules[name]
        for registry, part in dict.fromkeys(parts):  # so that the corrected file can be loaded later
            registry.unregister(part)
        what, hint = _what(error), f"see the traceback with: python {shlex.quote(str(file))}"
        if isinstance(error, MemskillError):  # for example: the name is already in use
            what, hint = error.message, error.hint
        raise PluginError(f"--plugin {file}: {what}", hint=hint) from error
    finally:
        _running.pop()
    _loaded[path] = Plugin(path, digest, tuple(f"{registry.kind} {part}" for registry, part in parts))
    return _loaded[path]


def plugin_frame(error: BaseException) -> str:
    """The innermost function of a plug-in that ``error`` passed through: "read (my_dataset.py:12)". "" if none."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_PREFIX) or module.partition(".")[0] in _packages:
            return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{line})"
    return ""


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _source_digest(part: object) -> str:
    """The sha256 of the file that defines a part; without a file (an interactive session) a random value."""
    try:
        return _sha256(Path(inspect.getfile(part if inspect.isroutine(part) or isinstance(part, type) else type(part))))
    except (OSError, TypeError):
        return os.urandom(16).hex()


def _what(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
