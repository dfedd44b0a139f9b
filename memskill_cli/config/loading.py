"""Load the settings of a command; every name and type is checked.

Order of precedence: defaults < the dataset's < preset < config file < environment < options. The last two are given
together as ``overrides``, because typer reads both.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import re
import tomllib
import typing
from pathlib import Path
from typing import Any, Literal

import tomli_w

from memskill_cli.config.checks import check
from memskill_cli.config.datasets import dataset_settings, preset_settings
from memskill_cli.config.model_parameters import fold
from memskill_cli.config.presets import PRESETS
from memskill_cli.config.renamed import ADDED, current_names
from memskill_cli.config.settings import Config
from memskill_cli.errors import UsageError

_KEY = re.compile(r"key|(?<!max_)token$|secret|password", re.IGNORECASE)
_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def load(
    *,
    preset: str = "default",
    file: Path | None = None,
    sets: typing.Sequence[str] = (),
    overrides: dict[str, Any] | None = None,
    base: Config | None = None,
    warn: typing.Callable[[str], None] = lambda text: None,
) -> Config:
    """The settings of a command.

    ``sets`` has texts ``section.key=value``, ``overrides`` has values by dotted name (None: not given). ``base``
    replaces the defaults, for example by the settings of a run; for another dataset than its own, settings that differ
    between datasets get that dataset's values. ``warn`` is called for each old name of a setting.
    Raises UsageError for invalid values and for unknown names, with the nearest name.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1)
        raise UsageError(
            f"no preset is called {preset}; there are {', '.join(PRESETS)}",
            hint=f"did you mean {near[0]}?" if near else "",
        )
    table = current_names(_flatten(read_toml(file)), warn) if file is not None else {}
    chosen = current_names(_chosen(sets, overrides or {}), warn)
    config = base or Config()
    dataset = str(chosen.get("dataset") or table.get("dataset") or config.dataset)
    if base is None or dataset != base.dataset:
        config = _apply(config, current_names(dataset_settings(dataset)), f"dataset {dataset}")
    if base is None or preset != "default":
        chosen_preset = {**preset_settings(preset, dataset), "preset": preset}
        config = _apply(config, current_names(chosen_preset), f"preset {preset}")
    config = _apply(config, table, str(file))
    config = _apply(config, chosen, "command line")
    check(config)
    return config


def for_evaluation(config: Config, *, judge: bool | None = None) -> Config:
    """The settings of an evaluation: ``eval.num_memories``, if set, is moved to ``memory.num_memories``.

    So an evaluation has the same name, whichever of the two settings was given. ``judge`` replaces ``eval.judge``.
    """
    asked = config.eval
    memory = dataclasses.replace(config.memory, num_memories=asked.num_memories or config.memory.num_memories)
    evaluation = dataclasses.replace(asked, num_memories=0, judge=asked.judge if judge is None else judge)
    return dataclasses.replace(config, memory=memory, eval=evaluation)


def _chosen(sets: typing.Sequence[str], overrides: dict[str, Any]) -> dict[str, Any]:
    """The settings given on the command line. ``--set`` takes precedence over other options."""
    chosen = {name: value for name, value in overrides.items() if value is not None}
    for text in sets:
        name, sign, value = text.partition("=")
        if not sign:
            shown = text if text in setting_names() else "…"  # any other text may contain a key
            raise UsageError(f"--set {shown}: expected section.key=value", hint="for example: --set train.num_skills=5")
        chosen[name.strip()] = value.strip()
    return chosen


def _fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    return {f.name: f for f in dataclasses.fields(cls)}


def setting_names() -> list[str]:
    """The dotted names of all settings, as in ``--set`` and config files."""
    names = []
    for name, item in _fields(Config).items():
        if dataclasses.is_dataclass(item.default_factory):
            names += [f"{name}.{inner}" for inner in _fields(item.default_factory)]
        else:
            names.append(name)
    return names


def _unknown(name: str, where: str) -> UsageError:
    if _KEY.search(name):
        return UsageError(
            f"{where}: {name} is not a setting: settings are stored with the run, keys are not",
            hint="give keys in MEMSKILL_API_KEYS, in the provider's own variable, or with --keys FILE.toml",
        )
    near = difflib.get_close_matches(name, setting_names(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "see the settings with: memskill train --help"
    return UsageError(f"{where}: no setting is called {name}", hint=hint)


def _convert(value: Any, kind: Any, name: str, where: str) -> Any:
    """``value`` (from TOML, or a text from the command line) as ``kind``; UsageError names the setting."""
    wrong = UsageError(f"{where}: {name} = {value!r} is not {_describe(kind)}")
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            near = difflib.get_close_matches(str(value), typing.get_args(kind), n=1)
            raise UsageError(wrong.message, hint=f"did you mean {near[0]}?" if near else "")
        return value
    if kind is bool:
        if isinstance(value, str):
            value = _TRUTH.get(value.lower(), value)
        if isinstance(value, bool):
            return value
        raise wrong
    if typing.get_origin(kind) is dict:  # checked by model_parameters.fold
        return value
    if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise wrong
    if kind is int and isinstance(value, float):
        raise wrong
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(kind, str(kind))


def _flatten(table: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            flat[name] = value
    return flat


def _apply(config: Config, flat: typing.Mapping[str, Any], where: str) -> Config:
    """A copy of ``config`` with the dotted settings of ``flat``; every name and type is checked."""
    hints = typing.get_type_hints(Config)
    sections: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for name, value in fold(flat, config.models.parameters, config.models.prices, where).items():
        if name not in setting_names():
            raise _unknown(name, where)
        section, _, inner = name.partition(".")
        if inner:
            kind = typing.get_type_hints(hints[section])[inner]
            sections.setdefault(section, {})[inner] = _convert(value, kind, name, where)
        else:
            top[name] = _convert(value, hints[name], name, where)
    for section, values in sections.items():
        top[section] = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **top)


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file as a dict; UsageError if it cannot be read or parsed."""
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise UsageError(f"{file}: not TOML: {error}") from None


def to_dict(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def from_dict(table: dict[str, Any], where: str = "config") -> Config:
    """Settings that a run saved. One that is missing did not exist then, and keeps its behaviour of that time."""
    return _apply(Config(), {**ADDED, **current_names(_flatten(table))}, where)


def to_toml(config: Config) -> str:
    """All settings as TOML. API keys are not settings, so it contains no secrets."""
    return tomli_w.dumps(to_dict(config))


def digest(table: typing.Any) -> str:
    """The first 12 hex digits of the sha256 of ``table`` as JSON (sorted keys, no blanks)."""
    import orjson

    return hashlib.sha256(orjson.dumps(table, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
