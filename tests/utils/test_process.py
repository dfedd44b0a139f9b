"""Changes to the process: made once, undone by the last call that borrowed it, kept by the command."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace

import pytest

from memskill_cli.utils import devices, process


@pytest.fixture(autouse=True)
def _as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_now", process._State())


def test_what_is_changed_in_a_call_is_set_back_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET", "theirs")
    monkeypatch.delenv("UNSET", raising=False)
    holder, log, filters = SimpleNamespace(there=1), logging.getLogger("test of process"), list(warnings.filters)
    log.setLevel(logging.INFO)
    with process.borrowed():
        process.set_attribute(holder, "there", 2)
        process.set_attribute(holder, "new", 3)
        process.set_variable("SET", "ours")
        process.set_variable("UNSET", "ours")
        process.silence(log.name)
        process.filter_records(log.name, lambda record: False)
        process.ignore_warnings("a test of process", UserWarning)
        assert (holder.there, holder.new) == (2, 3)
        assert (os.environ["SET"], os.environ["UNSET"]) == ("theirs", "ours")
        assert not log.isEnabledFor(logging.CRITICAL)
        with warnings.catch_warnings(record=True) as shown:
            warnings.warn("a test of process, ignored", UserWarning, stacklevel=1)
        assert not shown
    assert vars(holder) == {"there": 1}
    assert (os.environ["SET"], "UNSET" in os.environ) == ("theirs", False)
    assert (log.level, log.filters) == (logging.INFO, [])
    assert warnings.filters == filters


def test_the_last_of_several_calls_undoes_and_a_later_one_changes_again() -> None:
    holder = SimpleNamespace(value="theirs")
    with process.borrowed():
        with process.borrowed():
            process.set_attribute(holder, "value", "ours")
        assert holder.value == "ours", "another call still needs it"
        process.set_attribute(holder, "value", "ours again")
        assert holder.value == "ours", "it is changed already"
    assert holder.value == "theirs"
    with process.borrowed():
        process.set_attribute(holder, "value", "ours again")
        assert holder.value == "ours again"
    assert holder.value == "theirs"


def test_changes_are_undone_newest_first_also_after_an_error() -> None:
    undone: list[int] = []
    with pytest.raises(LookupError), process.borrowed():  # noqa: PT012 - the block is what is tested
        for number in (1, 2, 3):
            process.change(number, lambda number=number: lambda: undone.append(number))
        raise LookupError
    assert undone == [3, 2, 1]


def test_what_the_caller_sets_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSET", raising=False)
    holder, log = SimpleNamespace(value="theirs"), logging.getLogger("another test of process")
    with process.borrowed():
        process.set_attribute(holder, "value", "ours")
        process.set_variable("UNSET", "ours")
        process.silence(log.name)
        holder.value = os.environ["UNSET"] = "new"
        log.setLevel(logging.ERROR)
    assert (holder.value, os.environ["UNSET"], log.level) == ("new", "new", logging.ERROR)


def test_the_command_keeps_its_changes() -> None:
    holder = SimpleNamespace(value=1)
    process.own()
    with process.borrowed():
        assert not process.is_borrowed()
        process.set_attribute(holder, "value", 2)
    assert holder.value == 2


def test_variables_for_a_block_only_where_they_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET", "theirs")
    monkeypatch.delenv("UNSET", raising=False)
    with process.variables(SET="ours", UNSET="ours"):
        assert (os.environ["SET"], os.environ["UNSET"]) == ("theirs", "ours")
    assert (os.environ["SET"], "UNSET" in os.environ) == ("theirs", False)


def test_torch_has_one_thread_in_a_call_and_the_caller_s_number_after_it() -> None:
    import torch

    before = torch.get_num_threads()
    found: list[int] = []

    def elsewhere() -> None:
        found.append(torch.get_num_threads())

    def look() -> int:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return found.pop()

    try:
        torch.set_num_threads(3)
        with process.borrowed():
            with process.borrowed(), devices.threads_restored():
                assert (torch.get_num_threads(), look()) == (1, 1)
            assert (torch.get_num_threads(), look()) == (3, 1), "another call still runs"
        assert (torch.get_num_threads(), look()) == (3, 3)
    finally:
        torch.set_num_threads(before)


def test_the_command_owns_its_process_and_redacts_what_it_says() -> None:
    code = """
import gc, logging, os, sys
from memskill_cli.cli.process import own_process
os.environ["OPENAI_API_KEY"] = "sk-7Qm2xWfP9rTz4LkVb8NhYc3GdJs6"
own_process()
from memskill_cli.llm import load_litellm
load_litellm()
from memskill_cli.utils import process
print("7Qm2xWfP9rTz4LkVb8NhYc3GdJs6", file=sys.stderr)
print(process.owned(), gc.get_threshold()[0], os.environ["OMP_WAIT_POLICY"], os.environ["LITELLM_LOG"],
      logging.getLogger("LiteLLM").isEnabledFor(logging.CRITICAL))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["True", "20000", "PASSIVE", "CRITICAL", "False"], done.stderr
    assert done.stderr.strip() == "[key]"
