"""docs/configuration.md has every setting with its default."""

from __future__ import annotations

import re
from pathlib import Path

from memskill_cli.config import Config, setting_names, to_dict

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
SETTINGS = PAGE.partition("## All settings")[2].partition("\n## ")[0]
ROWS = dict(re.findall(r"^\| `([\w.]+)` \| `?([^|`]*)`? \|", SETTINGS, re.MULTILINE))


def default_of(name: str) -> object:
    value: object = to_dict(Config())
    for part in name.split("."):
        assert isinstance(value, dict)
        value = value[part]
    return value


def test_every_setting_is_on_the_page() -> None:
    assert set(setting_names()) <= ROWS.keys()


def test_no_other_setting_is_on_the_page() -> None:
    assert ROWS.keys() <= set(setting_names())


def test_the_defaults_are_those_of_the_settings() -> None:
    shown = {name: ROWS[name].strip() for name in setting_names()}
    wrong = {name: text for name, text in shown.items() if not _is(text, default_of(name))}
    assert wrong == {}


def _is(text: str, value: object) -> bool:
    if isinstance(value, bool):
        return text == str(value).lower()
    if isinstance(value, str):
        return text.strip('"') == value
    return text == str(value) if isinstance(value, dict) else float(text) == value
