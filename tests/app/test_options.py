"""Which setting an option of a command, or a keyword of the library, sets."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest

from memskill_cli.app.library import EvalOptions, Options, TrainOptions
from memskill_cli.app.options import SETTINGS, settings_of

SYNONYMS = {"top_k": "num_skills", "mem_top_k": "num_memories", "encoder": "state_encoder"}


def value(options: dict[str, Any], section: str, setting: str) -> Any:
    return reduce(getattr, setting.split("."), settings_of(options, section, pytest.fail))


@pytest.mark.parametrize(
    ("option", "given", "section", "setting"),
    [
        ("num_skills", 2, "train", "train.num_skills"),
        ("num_skills", 2, "eval", "eval.num_skills"),
        ("num_memories", 9, "train", "memory.num_memories"),
        ("num_memories", 9, "eval", "eval.num_memories"),
        ("state_encoder", "hashing", "train", "encoders.state"),
    ],
)
def test_both_names_of_an_option_set_the_same(option: str, given: Any, section: str, setting: str) -> None:
    (short,) = [name for name, other in SYNONYMS.items() if other == option]
    for name in (option, short):
        assert value({name: given}, section, setting) == given
    assert value({option: given}, section, setting) != value({}, section, setting)


@pytest.mark.parametrize(("short", "long"), SYNONYMS.items())
def test_of_two_names_the_name_of_the_setting_counts(short: str, long: str) -> None:
    one, other = ("hashing", "minilm") if short == "encoder" else (4, 5)
    setting = SETTINGS[long].format(section="train", memories="memory.num_memories")
    assert value({long: one, short: other}, "train", setting) == one


def test_every_option_with_a_setting_is_a_keyword_of_the_library() -> None:
    keywords = {*Options.__annotations__, *TrainOptions.__annotations__, *EvalOptions.__annotations__}
    assert SETTINGS.keys() - keywords == {"dataset"}, "which is the first parameter of the functions"
