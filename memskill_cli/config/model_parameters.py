"""Parameters of requests by role (``models.parameters``) and prices by model (``models.prices``): names and types.

On the command line a parameter is ``models.ROLE.NAME=VALUE``, with ``all`` for every role, and a price is
``prices.MODEL=INPUT,OUTPUT`` in US dollars per million tokens.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from memskill_cli.errors import UsageError

Parameters = dict[str, dict[str, Any]]
"""By role, or ``all``: values by name."""
ROLE_NAMES = ("all", "executor", "answer", "judge", "designer", "embedding")
OFF = "off"
"""Value of a parameter that is not sent."""
_NUMBER, _WHOLE, _TEXT, _SWITCH, _TABLE = "a number", "a whole number", "a text", "true or false", "a table"
NAMES: Mapping[str, tuple[str, ...]] = {
    "temperature": (_NUMBER, OFF),
    "top_p": (_NUMBER, OFF),
    "seed": (_WHOLE, OFF),
    "reasoning_effort": (_TEXT,),
    "max_completion_tokens": (_WHOLE, _SWITCH),
    "thinking_tokens": (_WHOLE,),
    "num_ctx": (_WHOLE,),
    "stream": (_SWITCH,),
    "api_version": (_TEXT,),
    "headers": (_TABLE,),
    "extra_body": (_TABLE,),
}
"""The parameters, each with what its value may be."""
_SECRET = re.compile(r"key|token|secret|authorization|cookie", re.IGNORECASE)
_RESERVED = ("model", "messages", "input", "stream")


def fold(flat: Mapping[str, Any], parameters: Parameters, prices: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``flat`` (values by dotted name) with single parameters and prices merged into those that there are already."""
    found: dict[str, Any] = {}
    own = {role: dict(values) for role, values in parameters.items()}
    costs = dict(prices)
    for name, value in flat.items():
        section, _, inner = name.partition(".")
        role, dot, parameter = inner.partition(".")
        if section == "prices" and inner:
            costs[inner] = read_price(value, inner, where)
        elif name == "models.prices":
            costs |= {model: read_price(given, model, where) for model, given in _table(value, name, where).items()}
        elif name == "models.parameters":
            for role, given in _table(value, name, where).items():
                _merge(own, role, _table(given, f"{name}.{role}", where), where)
        elif section == "models" and dot and role in ROLE_NAMES:
            _merge(own, role, {parameter: _from_text(value)}, where)
        else:
            found[name] = value
    return (
        found
        | ({"models.parameters": own} if own != parameters else {})
        | ({"models.prices": costs} if costs != prices else {})
    )


def _merge(own: Parameters, role: str, given: Mapping[str, Any], where: str) -> None:
    if role not in ROLE_NAMES:
        raise UsageError(f"{where}: models.parameters has no role {role}", hint="use one of " + ", ".join(ROLE_NAMES))
    for name, value in given.items():
        check_parameter(name, value, f"{where}: models.{role}.{name}")
        if name == "headers" and (secret := next(filter(_SECRET.search, value), "")):
            raise UsageError(
                f"{where}: models.{role}.headers: {secret} may hold a secret, and settings are stored with the run",
                hint='give it in a --keys FILE.toml: headers = { NAME = "env:VARIABLE" }',
            )
        own.setdefault(role, {})[name] = value


def check_parameter(name: str, value: Any, where: str) -> None:
    """UsageError if there is no such parameter, or if its value has another type."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        raise UsageError(
            f"{where}: no such parameter of a request",
            hint=f"did you mean {near[0]}?" if near else f"use one of {', '.join(NAMES)}; others go into extra_body",
        )
    if not any(_is(kind, value) for kind in NAMES[name]):
        raise UsageError(f"{where} must be {' or '.join(NAMES[name])}, not {value!r}")
    if name == "headers" and not all(isinstance(text, str) and _is_header(key, text) for key, text in value.items()):
        raise UsageError(f"{where}: names and values of headers must be texts of one line in ASCII")
    if name == "extra_body" and (taken := next((key for key in _RESERVED if key in value), "")):
        raise UsageError(f"{where}: {taken} cannot be changed there")


def _is(kind: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        _NUMBER: number and math.isfinite(value) and value >= 0,
        _WHOLE: number and isinstance(value, int) and value >= 0,
        _TEXT: isinstance(value, str) and bool(value.strip()),
        _SWITCH: isinstance(value, bool),
        _TABLE: isinstance(value, dict),
        OFF: value == OFF,
    }[kind]


def _is_header(name: str, value: str) -> bool:
    return bool(re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII)) and value.isascii() and value.isprintable()


def _table(value: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: {name} must be a table", hint="for example: --set models.answer.temperature=off")
    return value


def _from_text(value: Any) -> Any:
    """The value of a text from the command line: JSON, else TOML, else the text itself."""
    if not isinstance(value, str):
        return value
    import orjson

    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        pass
    try:
        return tomllib.loads(f"value = {value}")["value"] if "\n" not in value else value
    except tomllib.TOMLDecodeError:
        return value


def read_price(value: Any, model: str, where: str) -> list[float]:
    """US dollars per million tokens of prompts and of replies, from ``[input, output]`` or ``"input,output"``."""
    given = value.strip("[] ").split(",") if isinstance(value, str) else value
    try:
        found = [float(number) for number in given]
    except (TypeError, ValueError):
        found = []
    if len(found) != 2 or not all(math.isfinite(number) and number >= 0 for number in found):
        raise UsageError(
            f"{where}: prices.{model} must be two numbers, US dollars per million tokens of prompts and of replies",
            hint=f"for example: --set prices.{model}=0.15,0.60",
        )
    return found
