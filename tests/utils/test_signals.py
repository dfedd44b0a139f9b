"""Signals, in processes that do nothing but be stopped (tests/e2e/test_signals.py stops real commands)."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BEGINNING = """
import asyncio, os, signal, sys, time
from memskill_cli.utils import signals
def say(text): print(text, flush=True)
signals.install_handlers("memskill go on")
"""
WAITS = """
async def work():
    say("ready")
    try:
        await asyncio.sleep(60)
    finally:
        say("closing")
"""
RUNS = """
try:
    signals.run(work(), say)
except signals.StoppedError as error:
    say(f"{type(error).__name__}: {error}")
    signals.exit_process(error.exit_code)
signals.exit_process(0)
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@contextmanager
def started(*code: str, **more: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has said ``ready``."""
    command = [sys.executable, "-c", "\n".join([BEGINNING, *code])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)  # type: ignore[call-overload]
    try:
        assert next_line(process) == "ready"
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return str(process.stdout.readline().strip())


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    """Exit code, what else was said, and stderr."""
    assert process.stdout is not None
    assert process.stderr is not None
    code = process.wait(60)
    return code, process.stdout.read().splitlines(), process.stderr.read()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_ends_the_work_in_good_order(number: signal.Signals) -> None:
    with started(WAITS, RUNS) as process:
        process.send_signal(number)
        code, said, err = ended(process)
    assert code == 130
    assert said == [
        "stopping: work in progress is finished first; a second signal stops at once",
        "closing",
        "StoppedError: interrupted",
    ]
    assert err == ""


def test_at_the_first_signal_nothing_new_is_begun() -> None:
    """Before the work is cancelled, whoever sends things is told to send no more."""
    work = """
async def work():
    with signals.on_first_signal(lambda: say("hold")):
        say("ready")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            say("cancelled")
            raise
"""
    with started(work, RUNS) as process:
        process.send_signal(signal.SIGINT)
        code, said, _ = ended(process)
    assert code == 130
    assert (said[0], said[2]) == ("hold", "cancelled")


def test_what_is_under_way_is_finished() -> None:
    """A computation that holds the loop (an update, a checkpoint) is not broken off; closing is gone through once."""
    work = """
async def close():
    await asyncio.sleep(0.2)
    say("closed")
async def work():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        say("ready")
        time.sleep(0.2)
        say("computed")
        await asyncio.sleep(60)
    finally:
        await signals.finish_shielded(close())
"""
    with started(work, RUNS) as process:
        code, said, _ = ended(process)
    assert code == 130
    assert said[0] == "computed"
    assert said[2:] == ["closed", "StoppedError: interrupted"]


def test_a_signal_while_a_command_closes_for_another_reason_lets_it_close() -> None:
    work = """
async def close():
    say("ready")
    await asyncio.sleep(0.5)
    say("closed")
async def work():
    try:
        raise ValueError("the budget is used up")
    finally:
        await signals.finish_shielded(close())
"""
    with started(work, RUNS) as process:
        process.send_signal(signal.SIGINT)
        code, said, _ = ended(process)
    assert code == 130
    assert said[1:] == ["closed", "StoppedError: interrupted"]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "busy",
    ["while True: pass", "time.sleep(60)", "threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)"],
)
def test_the_second_signal_ends_the_process_at_once_whatever_holds_it(number: signal.Signals, busy: str) -> None:
    work = f"""
import threading
async def work():
    say("ready")
    {busy}
"""
    with started(work, RUNS) as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(number)
        code, said, err = ended(process)
    assert code == 130
    assert said == []
    assert err == "error: interrupted\n  → memskill go on\n"


def test_after_the_first_signal_no_thread_is_waited_for() -> None:
    """Such as one that downloads a model: it holds nothing that must be kept."""
    thread = "import threading\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    with started(thread, WAITS, RUNS) as process:
        process.send_signal(signal.SIGINT)
        code, said, _ = ended(process)
    assert code == 130
    assert said[-1] == "StoppedError: interrupted"


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "busy",
    [
        "time.sleep(60)",
        "try:\n    time.sleep(60)\nexcept BaseException:\n    time.sleep(60)",
        "class Odd:\n    def __del__(self): time.sleep(60)\nodd = Odd()\ndel odd",
        "asyncio.run(asyncio.sleep(60))",
    ],
)
def test_where_no_work_runs_the_first_signal_ends_the_process(number: signal.Signals, busy: str) -> None:
    """Also within code that swallows exceptions, or shows them and goes on."""
    with started('say("ready")', busy) as process:
        process.send_signal(number)
        code, said, err = ended(process)
    assert (code, said) == (130, [])
    assert err == "error: interrupted\n  → memskill go on\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_end_changes_no_exit_code(number: signal.Signals) -> None:
    with started("signals.exit_process(3)", 'say("ready")', "time.sleep(60)") as process:
        process.send_signal(number)
        assert ended(process) == (3, [], "")


def test_work_that_is_done_in_spite_of_a_signal_is_done() -> None:
    work = """
async def work():
    os.kill(os.getpid(), signal.SIGINT)
    return "all of it"
say("ready")
say(signals.run(work(), say))
signals.exit_process(0)
"""
    with started(work) as process:
        code, said, _ = ended(process)
    assert (code, said[-1]) == (0, "all of it")


def test_another_error_meanwhile_is_told_and_the_exit_code_is_that_of_an_interruption() -> None:
    work = """
async def work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        say("ready")
        await asyncio.sleep(60)
    finally:
        raise OSError("the disk is full")
"""
    with started(work, RUNS) as process:
        code, said, _ = ended(process)
    assert code == 130
    assert said[-1] == "StoppedError: interrupted, and an error occurred: the disk is full"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_stays_ignored(number: signal.Signals) -> None:
    """As by ``nohup``, and in the background of a script."""
    work = """
async def work():
    say("ready")
    sys.stdin.readline()
    return "done"
say(signals.run(work(), say))
"""
    ignored = {"stdin": subprocess.PIPE, "preexec_fn": lambda: signal.signal(number, signal.SIG_IGN)}
    with started(work, **ignored) as process:
        process.send_signal(number)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert ended(process) == (0, ["done"], "")


def test_a_terminal_that_closes_is_no_error(tmp_path: Path) -> None:
    """What is said then is said to nobody: the work ends in good order all the same."""
    told = tmp_path / "told"
    work = f"""
def tell(text):
    print(text, flush=True)
    with open({str(told)!r}, "a") as file: print(text, file=file)
async def work():
    tell("ready")
    try:
        await asyncio.sleep(60)
    finally:
        tell("closing")
try:
    signals.run(work(), tell)
except BaseException as error:
    tell(type(error).__name__)
"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", BEGINNING + work])
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 100)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert told.read_text().splitlines()[2:] == ["closing", "StoppedError"]


def test_the_command_line_shows_no_key() -> None:
    from memskill_cli.cli import resume_command

    typed = [
        "eval",
        "--api-key",
        "sk-1",
        "--run",
        "my run",
        "--api-key=sk-2",
        "--api-base",
        "https://me:pw@host/?key=k",
    ]
    line = resume_command.current_command(typed)
    assert "sk-" not in line
    assert "pw" not in line
    assert "key=k" not in line
    command, _, note = line.partition("   (")
    assert shlex.split(command)[:4] == ["memskill", "eval", "--run", "my run"]
    assert note == "and --api-key, not shown here)"
    assert resume_command.current_command(["prepare", "--dataset", "locomo"]) == "memskill prepare --dataset locomo"
    assert (
        resume_command.current_command(["train", "--api-key", "none", "--resume"])
        == "memskill train --resume --api-key none"
    )
    both = resume_command.current_command(["train", "--api-key=none", "--api-key=sk-3"])
    assert both == "memskill train --api-key none   (and --api-key, not shown here)"
