"""Named parts that users can add to: datasets, methods, rewards and the like.

A name is looked up among the built-in parts, then among what a plug-in file has registered (``--plugin FILE.py``), then
among the entry points of installed packages. A module is imported when its part is asked for.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
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


_loaded: dict[Path, Plugin] = {}
_running: list[tuple[str, list[tuple[Registry[Any], str]]]] = []
"""What runs at this moment and may register parts: a plug-in file (its sha256) or a module of an installed package
(its name and version), and what it has registered so far."""


class Registry(Generic[T]):
    """Parts of one kind by name.

    ``kind`` is the word for messages ("dataset"); ``group`` is the group of entry points; ``builtin`` maps a name to
    ``module:attribute``.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self.kind, self.group, self._builtin = kind, group, dict(builtin)
        self._registered: dict[str, T] = {}
        self._sources: dict[str, str] = {}

    def register(self, name: str, part: T) -> T:
        """Add a part under ``name``. PluginError if the name is taken by another part."""
        if self._is_entry_point(name, part):
            return part
        if name in self._builtin or self._registered.get(name, part) is not part:
            raise PluginError(f"there is already a {self.kind} called {name}", hint="give the plug-in's another name")
        if name in self._registered:
            return part
        self._registered[name] = part
        self._sources[name] = _running[-1][0] if _running else _source_digest(part)
        if _running:
            _running[-1][1].append((self, name))
        return part

    def _is_entry_point(self, name: str, part: object) -> bool:
        """Whether an installed package gives the part anyhow: then the package's version is the part's identity."""
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
        """Take out what :meth:`register` added."""
        del self._registered[name], self._sources[name]

    def names(self) -> list[str]:
        """All names: built-in, registered, and those of installed packages."""
        return list(dict.fromkeys([*self._builtin, *self._registered, *self._entry_points()]))

    def check(self, name: str, setting: str = "") -> None:
        """Raises UsageError, with the nearest name, if there is no such part. ``setting`` is what names it."""
        if name not in self._builtin and name not in self._registered:
            try:
                self._entry_point(name)
            except UsageError as error:
                raise UsageError(f"{setting}: {error.message}" if setting else error.message, hint=error.hint) from None

    def identity(self, name: str) -> str:
        """What tells this version of a part from others: "" for a built-in one (the version of memskill is recorded
        elsewhere), the sha256 of a plug-in file, or the name and version of an installed package."""
        if name in self._builtin:
            return ""
        return self._sources[name] if name in self._registered else self.origin(name)

    def origin(self, name: str) -> str:
        """Where a part comes from: ``memskill``, ``plug-in``, or the name and version of an installed package.

        UsageError if there is no such part.
        """
        if name in self._builtin:
            return "memskill"
        if name in self._registered:
            return "plug-in"
        package = self._entry_point(name).dist
        return f"{package.name} {package.version}" if package else "installed package"

    def get(self, name: str) -> T:
        """The part called ``name``.

        UsageError (with the nearest name) if there is none; PluginError if an installed package cannot be loaded.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self._builtin:
            module, _, attribute = self._builtin[name].partition(":")
            part: T = getattr(importlib.import_module(module), attribute)
            return part
        entry = self._entry_point(name)
        _running.append((self.origin(name), []))  # so what the module registers has the version of its package
        try:
            loaded: T = entry.load()
        except Exception as error:  # code of others: whatever it raises, the message names the package
            raise PluginError(f"{self.kind} {name} ({entry.value}) cannot be loaded: {_what(error)}") from error
        finally:
            _running.pop()
        return loaded

    def _entry_point(self, name: str) -> EntryPoint:
        found = self._entry_points().get(name)
        if found is None:
            near = difflib.get_close_matches(name.lower(), self.names(), n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"a {self.kind} of your own: --plugin FILE.py"
            raise UsageError(f"no {self.kind} is called {name}; there are {', '.join(self.names())}", hint=hint)
        return found

    def _entry_points(self) -> Mapping[str, EntryPoint]:
        return _entry_points(self.group)


@functools.cache
def _entry_points(group: str) -> Mapping[str, EntryPoint]:
    """Of all installed packages; looking through them takes some 30 ms."""
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=group)}


def load_plugins(files: Iterable[Path] | None, notice: Callable[[str], None] = lambda text: None) -> tuple[Plugin, ...]:
    """Run several plug-in files, in order; ``notice`` is told of each that was not loaded before."""
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


def load_plugin(file: Path) -> Plugin:
    """Run a Python file that registers parts. It is ordinary code, run with the rights of the user who names it.

    A file is run once in a process. PluginError if it does not exist or raises.
    """
    path = file.expanduser().resolve()
    if path in _loaded:
        return _loaded[path]
    if not path.is_file():
        raise PluginError(f"--plugin {file}: no such file", hint="name a Python file: --plugin my_dataset.py")
    # The same name in every process, so that another process finds the classes of what is sent to it.
    name = f"memskill_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"--plugin {file}: not a Python file", hint="its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it runs
    digest, parts = _sha256(path), list[tuple[Registry[Any], str]]()
    _running.append((digest, parts))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # code of others
        del sys.modules[name]
        for registry, part in dict.fromkeys(parts):  # so that the corrected file can be loaded
            registry.unregister(part)
        what, hint = _what(error), "run it with python to see where"
        if isinstance(error, MemskillError):  # such as a name that is taken
            what, hint = error.message, error.hint
        raise PluginError(f"--plugin {file}: {what}", hint=hint) from error
    finally:
        _running.pop()
    _loaded[path] = Plugin(path, digest, tuple(f"{registry.kind} {part}" for registry, part in parts))
    return _loaded[path]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _source_digest(part: object) -> str:
    """The sha256 of the file that defines a part; without one (an interactive session) a value that never repeats."""
    try:
        return _sha256(Path(inspect.getfile(part if inspect.isroutine(part) or isinstance(part, type) else type(part))))
    except (OSError, TypeError):
        return os.urandom(16).hex()


def _what(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
