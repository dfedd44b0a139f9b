"""What tests of several folders share: the installed command, the prepared sample, a home of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from .fault_injection import Done

# Property tests draw the same examples in every run, so that a run does not depend on luck. ``make fuzz`` draws others.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.register_profile("fuzz", derandomize=False, max_examples=500, deadline=None, database=None, print_blob=True)
settings.load_profile("repeatable")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell starts with "&", and its children
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Home:
    """An empty place to type commands in, with a cache of its own and no keys."""

    path: Path

    def environ(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MEMSKILL_") and "API_KEY" not in k}
        return {**kept, "MEMSKILL_CACHE_DIR": str(self.path / "cache"), "OMP_NUM_THREADS": "1", **more}

    def memskill(self, *arguments: str, **environ: str) -> Done:
        """The installed command, as a user runs it."""
        done = subprocess.run(
            [sys.executable, "-m", "memskill_cli", *arguments],
            cwd=self.path,
            env=self.environ(**environ),
            capture_output=True,
            text=True,
            timeout=280,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def together(self, *commands: Sequence[str]) -> list[Done]:
        """Several commands at once: most of a command's time is imports, and there are at least two cores."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda arguments: self.memskill(*arguments), commands))

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        """The same, left running."""
        return subprocess.Popen(
            [sys.executable, "-m", "memskill_cli", *arguments],
            cwd=self.path,
            env=self.environ(**environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in which the sample is prepared; not to be written to."""
    home = Home(tmp_path_factory.mktemp("sample"))
    done = home.memskill("prepare", "--dataset", "locomo", "--sample", "--quiet")
    assert done.code == 0, done.err
    return home.path / "data"


@pytest.fixture(scope="session")
def new_home(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Home]:
    """Makes homes in which the sample is prepared; for fixtures that several tests share."""

    def make() -> Home:
        home = Home(tmp_path_factory.mktemp("home"))
        shutil.copytree(sample, home.path / "data")
        return home

    return make


@pytest.fixture
def prepared(new_home: Callable[[], Home]) -> Home:
    """A home in which the sample is prepared."""
    return new_home()


Flags = Callable[..., list[str]]


def tiny(url: str, *more: str) -> list[str]:
    """Flags of a tiny training or evaluation against a server, without a text encoder to load."""
    encoder = ["--encoder", "hashing", "--retriever", "hashing"]
    return ["--dataset", "locomo", "--model", "openai/rules", "--api-base", url, *encoder, *more]


@pytest.fixture
def small() -> Flags:
    return tiny
