"""Parameters of requests by role, and prices by model, from the command line, config files and saved runs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from memskill_cli.config import from_dict, load, to_dict, to_toml
from memskill_cli.errors import UsageError


def test_single_parameters_are_added_to_those_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[models.parameters.answer]\nseed = 3\ntemperature = 0.2\n[prices]\n"openai/a-4.1" = [1, 2]\n')
    sets = [
        "models.answer.temperature=off",
        'models.answer.extra_body={"enable_thinking": false}',
        "models.all.reasoning_effort=low",
        "models.judge.max_completion_tokens=true",
        "models.judge=openai/b",
        "prices.openai/b-1.5=0.15,0.60",
    ]
    models = load(file=file, sets=sets).models
    assert models.judge == "openai/b"
    assert models.parameters == {
        "answer": {"seed": 3, "temperature": "off", "extra_body": {"enable_thinking": False}},
        "all": {"reasoning_effort": "low"},
        "judge": {"max_completion_tokens": True},
    }
    assert models.prices == {"openai/a-4.1": [1.0, 2.0], "openai/b-1.5": [0.15, 0.6]}


def test_they_are_saved_with_a_run_and_read_again() -> None:
    config = load(sets=["models.all.seed=7", "prices.m=1,2", 'models.answer.extra_body={"a": {"b": [1]}}'])
    assert from_dict(tomllib.loads(to_toml(config))) == config
    assert load(base=config, sets=["models.all.top_p=0.5"]).models.parameters["all"] == {"seed": 7, "top_p": 0.5}


def test_a_run_without_them_keeps_what_it_did() -> None:
    table = to_dict(load())
    for name in ("parameters", "prices"):
        del table["models"][name]
    del table["limits"]["max_skipped"]
    old = from_dict(table)
    assert (old.models.parameters, old.models.prices, old.limits.max_skipped) == ({}, {}, 0.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models.answer.temprature=0", "temperature"),
        ("models.answer.temperature=hot", "a number or off"),
        ("models.answer.seed=1.5", "a whole number"),
        ("models.answer.stream=maybe", "true or false"),
        ("models.answer.extra_body=7", "a table"),
        ('models.answer.extra_body={"messages": []}', "messages"),
        ('models.answer.headers={"Authorization": "Bearer x"}', "--keys FILE.toml"),
        ('models.answer.headers={"X-A": "b\\nc"}', "one line"),
        ("models.nobody.seed=1", "no setting is called"),
        ("prices.openai/x=cheap", "--set prices.openai/x=0.15,0.60"),
        ("prices.openai/x=-1,2", "two numbers"),
        ("prices.openai/x=nan,2", "two numbers"),
        ("models.parameters=7", "a table"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_right(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(sets=[text])
    assert says in f"{caught.value.message} {caught.value.hint}"
