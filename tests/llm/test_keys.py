"""Where keys come from, what they are called, and that they can be scrubbed from any text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.errors import UsageError
from memskill_cli.llm.keys import FRAGMENT, KeyRing, key_file_warning

from .conftest import MODEL

LOCAL = "http://127.0.0.1:9/v1"


def served(ring: KeyRing, role: str = "answer", model: str = MODEL, base: str = "") -> list[tuple[str, str, str]]:
    """Label, model and key of each deployment."""
    found = ring.deployments(role, model, base)  # type: ignore[arg-type]
    return [(d.label, d.model, d.params.get("api_key") or "") for d in found]


def keys_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "keys.toml"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_flags_come_before_the_environment() -> None:
    environ = {"MEMSKILL_API_KEYS": "c,d", "OPENAI_API_KEY": "e"}
    assert [key for _, _, key in served(KeyRing.collect(["a", "b"], None, environ))] == ["a", "b"]
    assert [key for _, _, key in served(KeyRing.collect([], None, environ))] == ["c", "d"]
    assert [key for _, _, key in served(KeyRing.collect([], None, {"OPENAI_API_KEY": "e"}))] == ["e"]


def test_numbered_variables_with_gaps_in_order_without_duplicates() -> None:
    environ = {
        "OPENAI_API_KEY_10": "ten",
        "OPENAI_API_KEY_2": "two",
        "OPENAI_API_KEY": "none-given",
        "OPENAI_API_KEY_3": "two",
        "OPENAI_API_KEY_4": " ",
        "GROQ_API_KEY": "other",
    }
    ring = KeyRing.collect([], None, environ)
    assert served(ring) == [
        ("openai#1", MODEL, "none-given"),
        ("openai#2", MODEL, "two"),
        ("openai#3", MODEL, "ten"),
    ]
    assert served(ring, model="groq/llama-3.3-70b-versatile")[0][::2] == ("groq#1", "other")


def test_a_key_has_one_label_in_every_role(tmp_path: Path) -> None:
    file = keys_file(tmp_path, '[[executor]]\nkeys = ["a", "b"]\n[[judge]]\nkeys = ["b", "c"]\n')
    ring = KeyRing.collect([], file, {})
    assert [(label, key) for label, _, key in served(ring, "executor")] == [("openai#1", "a"), ("openai#2", "b")]
    assert [(label, key) for label, _, key in served(ring, "judge")] == [("openai#2", "b"), ("openai#3", "c")]


def test_a_keys_file_gives_roles_their_own_models_keys_and_limits(tmp_path: Path) -> None:
    file = keys_file(
        tmp_path,
        """
        [[executor]]
        model = "groq/llama-3.3-70b-versatile"
        keys = ["env:MY_GROQ"]
        rpm = 30
        [[executor]]
        keys = ["local-key"]
        api_base = "http://127.0.0.1:9/v1"
        input_cost_per_token = 1e-6
        [[all]]
        keys = ["for-all"]
        """,
    )
    ring = KeyRing.collect(["flag"], file, {"MY_GROQ": "from-env"})
    groq, local = ring.deployments("executor", MODEL, "")
    assert (groq.label, groq.params["api_key"], groq.params["rpm"]) == ("groq#1", "from-env", 30)
    assert (local.label, local.api_base, local.params["input_cost_per_token"]) == ("openai#1", LOCAL, 1e-6)
    assert [key for _, _, key in served(ring, "judge")] == ["for-all"]


def test_the_embedded_model_needs_no_key(tmp_path: Path) -> None:
    file = keys_file(tmp_path, '[[all]]\nkeys = ["k"]\n[[judge]]\nmodel = "openai/gpt-4o"\nkeys = ["k"]\n')
    ring = KeyRing.collect([], file, {})
    assert served(ring, model="embedded:/a/model.gguf") == [("embedded", "embedded:/a/model.gguf", "")]
    assert served(ring, "judge", model="embedded") == [("openai#1", "openai/gpt-4o", "k")]


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ('[[executr]]\nkeys = ["SECRET"]', "executr", "executor"),
        ('[[all]]\nkey = ["SECRET"]', "key", "keys"),
        ('[all]\nkeys = ["SECRET"]', "[[all]]", ""),
        ('[[all]]\nkeys = "SECRET"', "keys must be a list of strings", ""),
        ("[[all]]\nkeys = [7]", "keys must be strings", "env:"),
        ('[[all]]\nrpm = "SECRET"', "rpm must be an integer", ""),
        ('[[all]]\nkeys = ["env:UNSET_NAME"]', "UNSET_NAME", ""),
        ('[[all]]\nkeys = ["env:SECRET-sk"]', "named there", ""),
        ("[[all]]\nSECRET-sk-as-a-name = 1", "all", ""),
        ('[[all]]\napi_base = "https://u:SECRET@h/v1"', "api_base must not hold", "keys"),
        ('[[all]]\napi_base = "https://h/v1?a=b&api_key=SECRET"', "api_base must not hold", "keys"),
        ('[[all]]\nkeys = ["SECRET', "not TOML", ""),
        ("[[all]]\nkeys = [SECRET]", "not TOML", ""),
    ],
)
def test_errors_name_the_place_and_no_value(tmp_path: Path, text: str, says: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        KeyRing.collect([], keys_file(tmp_path, text), {})
    assert says in str(caught.value)
    assert hint in caught.value.hint
    assert "SECRET" not in str(caught.value) + caught.value.hint
    assert str(tmp_path) in str(caught.value)


def test_who_else_can_get_at_a_keys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = keys_file(tmp_path, "")
    link = tmp_path / "a link.toml"
    link.symlink_to(file)
    assert key_file_warning(file) == key_file_warning(link) == ""
    for mode in (0o644, 0o640, 0o602, 0o610):
        file.chmod(mode)
        assert "chmod 600" in key_file_warning(file)
        assert f"chmod 600 '{link}'" in key_file_warning(link), "a link is judged by what it leads to"
    file.chmod(0o600)
    owner = file.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert ("another user" in key_file_warning(file)) == (owner != 0), "root can read everything anyway"


def test_a_keys_file_of_another_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    file = keys_file(tmp_path, "")
    os.chown(file, 65534, 65534)
    assert "belongs to another user" in key_file_warning(file)


def test_nothing_shows_a_key_by_its_own() -> None:
    ring = KeyRing.collect(["sk-visible-key-1234567890"], None, {})
    shown = repr(ring) + repr(ring.deployments("answer", MODEL, LOCAL)) + str(vars(ring).keys())
    assert "visible" not in shown


@given(
    key=st.text(alphabet="abcdefghijkl0123456789-_", min_size=FRAGMENT, max_size=60),
    before=st.text(max_size=40),
    after=st.text(max_size=40),
    cut=st.tuples(st.integers(0, 48), st.integers(FRAGMENT, 60)),
)
def test_no_fragment_survives_scrubbing(key: str, before: str, after: str, cut: tuple[int, int]) -> None:
    ring = KeyRing.collect([key], None, {})
    piece = key[cut[0] : cut[0] + cut[1]]
    for text in (f"{before}{key}{after}", f"{before}{piece}{after}", f"{key}{key}", f"{piece}{before}{key}"):
        clean = ring.redact(text)
        fragments = {key[i : i + FRAGMENT] for i in range(len(key) - FRAGMENT + 1)}
        assert not any(fragment in clean for fragment in fragments)


@given(st.text(max_size=200))
def test_scrubbing_leaves_other_text_alone(text: str) -> None:
    ring = KeyRing.collect(["sk-0123456789abcdefghijkl"], None, {})
    assert ring.redact(text) == text


def test_short_keys_are_scrubbed_from_errors_but_not_from_what_models_say() -> None:
    ring = KeyRing.collect(["local"], None, {})
    assert ring.redact("key local refused, locally") == "key [key] refused, locally"
    assert ring.redact_reply("the local train") == "the local train"


def test_replies_lose_our_keys_whole_and_nothing_else() -> None:
    environ = {"DEPLOY_TOKEN": "organization-stage-2024-internal", "OPENAI_API_KEY": "sk-our-own-key-0123456789"}
    ring = KeyRing.collect([], None, environ)
    told = "organization-stage-2024-internal and sk-our-own-key-01234567 are no keys of ours"
    assert ring.redact_reply(told) == told
    assert ring.masked_replies == 0
    assert ring.redact_reply("it is sk-our-own-key-0123456789.") == "it is [key]."
    assert ring.masked_replies == 1
    assert "organization" not in ring.redact(told), "errors and logs lose all secrets"
