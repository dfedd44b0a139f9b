"""API keys: sources, labels and redaction.

Everything that is shown or stored names a key by its label (``openai#2``).
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from memskill_cli.config import ModelsConfig, read_toml
from memskill_cli.config.model_parameters import NAMES, check_parameter
from memskill_cli.errors import AuthError, UsageError
from memskill_cli.llm.models import (
    CLOUD_PROVIDERS,
    EMBEDDED_PROVIDER,
    is_embedded,
    is_own_server,
    key_variables,
    needs_key,
    provider_names,
    resolve_provider,
)
from memskill_cli.types import ROLES, Role
from memskill_cli.utils import redaction
from memskill_cli.utils.redaction import FRAGMENT, MASK, NO_KEY, SHORTEST, Secrets, strip_credentials

CallRole = Role | Literal["embedding"]
"""What a call is for: a role, or embedding texts."""
_OWNED = re.compile(r"([a-z][a-z0-9_]{1,40})=(.+)")
"""A key with its provider."""
_KEY_VARIABLE = re.compile(r"(?:_API_KEY|^HF_TOKEN)(?:_\d+)?$")
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "keys": list,
    "api_base": str,
    "rpm": int,
    "tpm": int,
    "input_cost_per_token": (int, float),
    "output_cost_per_token": (int, float),
}
_DEFAULTS = ModelsConfig()


@dataclass(frozen=True)
class Deployment:
    """One model with one key. Show ``model`` only: ``params`` are litellm's and contain the key."""

    label: str
    model: str
    api_base: str
    params: dict[str, Any] = field(repr=False)
    parameters: dict[str, Any] = field(default_factory=dict, repr=False)
    """Parameters of its requests by name, of the settings and the keys file (config/model_parameters.py)."""

    @property
    def provider(self) -> str:
        """litellm's name of the provider."""
        return self.label.partition("#")[0]


@dataclass(frozen=True)
class _Entry:
    """A table of a keys file."""

    model: str = ""
    keys: tuple[str, ...] = field(default=(), repr=False)
    api_base: str = ""
    limits: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict, repr=False)


class KeyRing:
    """All keys of this process. Build it with :meth:`collect`."""

    def __init__(self, given: Sequence[str], entries: Mapping[str, list[_Entry]], environ: Mapping[str, str]) -> None:
        self.shown_notices: set[str] = set()
        """Notices about these keys that were shown, by any router."""
        self._given = tuple(given)
        self._entries = entries
        self._environ = environ
        self._sent_to: set[str] = set()  # providers that got keys given without one
        self._labels: dict[tuple[str, str], str] = {}
        self._keys = {*given, *(owned[2] for key in given if (owned := _OWNED.fullmatch(key)))}
        self._keys.update(key for tables in entries.values() for entry in tables for key in entry.keys)
        self._keys.update(value for name, value in environ.items() if _KEY_VARIABLE.search(name))
        headers = (entry.parameters.get("headers", {}) for tables in entries.values() for entry in tables)
        self._keys.update(value for given in headers for value in given.values())
        self._keys -= {"", NO_KEY}
        redaction.remember(self._keys)
        others = redaction.secrets_of(environ)
        self._secrets = Secrets(self._keys | others)
        self._reply_secrets = Secrets({key for key in self._keys if len(key) >= FRAGMENT}, whole=True)
        self.masked_replies = 0
        """Number of model replies in which a key was masked."""
        words = sorted((key for key in self._keys if len(key) < SHORTEST), key=len, reverse=True)
        self._short_keys = re.compile("|".join(rf"(?<!\w){re.escape(key)}(?!\w)" for key in words)) if words else None

    def __repr__(self) -> str:
        return f"KeyRing({len(self._keys)} keys)"

    @classmethod
    def collect(
        cls, api_keys: Sequence[str] = (), keys_file: Path | None = None, environ: Mapping[str, str] = os.environ
    ) -> KeyRing:
        """The keys of flags (``api_keys``), a keys file and the environment. UsageError if the file is invalid."""
        given = [key.strip() for key in api_keys if key.strip()]
        if not given:
            given = [key.strip() for key in environ.get("MEMSKILL_API_KEYS", "").split(",") if key.strip()]
        return cls(given, _read_keys_file(keys_file, environ) if keys_file else {}, environ)

    def deployments(
        self, role: CallRole, model: str, api_base: str, settings: ModelsConfig = _DEFAULTS
    ) -> list[Deployment]:
        """The models and keys that serve ``role``, at least one.

        The role's tables in the keys file, else its ``[[all]]`` tables, take precedence over ``model`` and
        ``api_base``, which come from the configuration. A model in ``[[all]]`` is a language model, so it is not used
        for embeddings. ``settings`` has the parameters of the role and the prices of models. AuthError if a provider
        needs a key and has none; UnknownModelError as in :func:`resolve_provider`.
        """
        entries = self._entries.get(role)
        if entries is None:
            entries = [e for e in self._entries.get("all", ()) if not (e.model and role == "embedding")]
        usable = [entry for entry in entries if entry.model or not is_embedded(model)] or [_Entry()]
        found: dict[tuple[str, str, str], Deployment] = {}
        for entry in usable:
            base = entry.api_base or ("" if entry.model else api_base)
            for key, deployment in self._expand(role, entry, entry.model or model, base, settings):
                found.setdefault((deployment.model, deployment.api_base, key), deployment)
        return list(found.values())

    def _expand(
        self, role: str, entry: _Entry, model: str, base: str, settings: ModelsConfig
    ) -> Iterator[tuple[str, Deployment]]:
        name, provider = resolve_provider(model, base)
        if name.startswith(EMBEDDED_PROVIDER):
            yield "", Deployment(provider, model, "", {"model": name})
            return
        own = settings.parameters
        parameters = {**own.get("all", {}), **own.get(role, {}), **entry.parameters}
        limits = {**price_fields(settings.prices, model, name), **entry.limits}
        for key in entry.keys or self._keys_of(provider, base) or self._without_key(role, name, provider, base):
            params: dict[str, Any] = {"model": name, "api_key": key or None, "api_base": base or None, **limits}
            yield key, Deployment(self._label(provider, key), name, base, params, parameters)

    def _keys_of(self, provider: str, base: str) -> list[str]:
        """The keys for a provider: those given as ``provider=KEY``, else those given alone, else its variables'.

        UsageError if keys without a provider would be sent to several. A variable's key is not sent to a server of
        someone else.
        """
        if own := [key for owner, key in map(_owner_of, self._given) if owner == provider]:
            return own
        bare = [key for owner, key in map(_owner_of, self._given) if not owner]
        if bare and provider not in CLOUD_PROVIDERS:
            self._sent_to.add(provider)
            if len(self._sent_to) > 1:
                first, second, *_ = names = sorted(self._sent_to)
                raise UsageError(
                    f"a key that does not say whose it is would be sent to {', '.join(names)}",
                    hint=f"name the provider: --api-key {first}=KEY --api-key {second}=KEY (or MEMSKILL_API_KEYS)",
                )
            return bare
        for variable in () if is_own_server(provider, base) else key_variables(provider):
            if keys := _numbered(variable, self._environ):
                return keys
        return []

    def _without_key(self, role: str, model: str, provider: str, base: str) -> list[str]:
        if base and provider not in CLOUD_PROVIDERS:
            return [NO_KEY]
        if not needs_key(model):
            return [""]  # litellm finds cloud credentials itself
        variable = key_variables(provider)[0]
        raise AuthError(
            f"no API key for {model} (role {role})", hint=f"set {variable}, or use --api-key KEY or --keys FILE.toml"
        )

    def _label(self, provider: str, key: str) -> str:
        known = sum(1 for owner, _ in self._labels if owner == provider)
        return self._labels.setdefault((provider, key), f"{provider}#{known + 1}")

    def redact(self, text: str) -> str:
        """``text`` without keys and other secrets of the environment, in any form: for display and logs.

        It removes every run of :data:`FRAGMENT` characters of a secret. Keys shorter than eight characters are removed
        as whole words.
        """
        text = self._secrets.redact(text)
        return self._short_keys.sub(MASK, text) if self._short_keys else text

    def redact_reply(self, text: str) -> str:
        """``text`` without whole keys of this ring, which :attr:`masked_replies` counts.

        Keys shorter than :data:`FRAGMENT` stay, because a reply may contain such words ("test"). So do pieces of keys
        and other secrets of the environment: what a model writes must not depend on the shell.
        """
        masked = self._reply_secrets.redact(text)
        self.masked_replies += masked != text
        return masked


def price_fields(prices: Mapping[str, Sequence[float]], *names: str) -> dict[str, float]:
    """litellm's fields for the price of a model, which has several ``names``; none if it has no price there."""
    given = next((prices[name] for name in names if name in prices), ())
    fields = ("input_cost_per_token", "output_cost_per_token")
    return {name: dollars / 1e6 for name, dollars in zip(fields, given, strict=False)}


def key_file_warning(keys_file: Path) -> str:
    """A warning if other users can read the keys in a file, with the fix; "" if they cannot.

    For a symbolic link, the permissions of its target count.
    """
    try:
        found = keys_file.stat()
    except OSError:
        return ""  # reading the file reports the error
    shown = shlex.quote(str(keys_file))
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"{keys_file} can be read by other users of this machine; fix: chmod 600 {shown}"
    if found.st_uid not in (0, os.geteuid()):
        return f"{keys_file} belongs to another user, who can read it; use a copy: install -m 600 {shown} my-keys.toml"
    return ""


def _owner_of(given: str) -> tuple[str, str]:
    """The provider that a given key names ("" if none), and the key."""
    found = _OWNED.fullmatch(given)
    return (found[1], found[2].strip()) if found and found[1] in provider_names() else ("", given)


def _numbered(variable: str, environ: Mapping[str, str]) -> list[str]:
    """The values of ``NAME``, ``NAME_1``, ``NAME_7``… in that order, without duplicates and blanks."""
    numbers = sorted(int(m[1]) for name in environ if (m := re.fullmatch(rf"{re.escape(variable)}_(\d+)", name)))
    names = [variable, *(f"{variable}_{number}" for number in numbers)]
    return list(dict.fromkeys(key for name in names if (key := environ.get(name, "").strip())))


def _read_keys_file(file: Path, environ: Mapping[str, str]) -> dict[str, list[_Entry]]:
    """Tables by role. Errors name tables and fields, never values."""
    entries: dict[str, list[_Entry]] = {}
    for role, tables in read_toml(file).items():
        _check_name(role, [*ROLES, "embedding", "all"], f"{file}: unknown role")
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise UsageError(f"{file}: {role} must be written as [[{role}]], with double brackets")
        entries[role] = [_entry(table, f"{file}: [[{role}]] number {i + 1}", environ) for i, table in enumerate(tables)]
    return entries


def _entry(table: dict[str, Any], where: str, environ: Mapping[str, str]) -> _Entry:
    parameters = {name: _with_variables(name, table[name], where, environ) for name in NAMES if name in table}
    for name, value in parameters.items():
        check_parameter(name, value, f"{where}: {name}")
    for name, value in table.items():
        if name in NAMES:
            continue
        _check_name(name, [*_FIELDS, *NAMES], f"{where}: unknown field")
        if not isinstance(value, _FIELDS[name]) or isinstance(value, bool):
            raise UsageError(f"{where}: {name} must be {_type_name(name)}")
    if strip_credentials(base := table.get("api_base", "")) != base:
        raise UsageError(f"{where}: api_base must not hold a user, a password or a key", hint="use keys = [...]")
    limits = {name: table[name] for name in list(_FIELDS)[3:] if name in table}
    keys = tuple(_key(key, where, environ) for key in table.get("keys", ()))
    return _Entry(table.get("model", ""), keys, base, limits, parameters)


def _with_variables(name: str, value: Any, where: str, environ: Mapping[str, str]) -> Any:
    """``value``; of headers, which can hold secrets, with the values of the variables that it names (``env:NAME``)."""
    if name != "headers" or not isinstance(value, dict):
        return value
    return {
        key: _key(text, where, environ) if isinstance(text, str) and text.startswith("env:") else text
        for key, text in value.items()
    }


def _type_name(name: str) -> str:
    kind = _FIELDS[name]
    return {str: "a string", int: "an integer", list: "a list of strings"}.get(kind, "a number")  # type: ignore[arg-type]


def _key(key: Any, where: str, environ: Mapping[str, str]) -> str:
    if not isinstance(key, str) or not key.strip():
        raise UsageError(f"{where}: keys must be strings", hint='for example: keys = ["env:OPENAI_API_KEY"]')
    if not key.startswith("env:"):
        return key.strip()
    variable = key.removeprefix("env:").strip()
    if not environ.get(variable, "").strip():
        shown = variable if re.fullmatch(r"[A-Z][A-Z0-9_]*", variable) else "named there"
        raise UsageError(f"{where}: the environment variable {shown} is not set")
    return environ[variable].strip()


def _check_name(name: str, names: list[str], problem: str) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    shown = f" {name}" if re.fullmatch(r"[a-z_]{1,24}", name) else ""  # any other name may be a misplaced key
    hint = f"did you mean {near[0]}?" if near else "use one of " + ", ".join(names)
    raise UsageError(f"{problem}{shown}", hint=hint)
