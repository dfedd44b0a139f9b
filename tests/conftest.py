"""What tests of several folders share: the installed command, the prepared sample, a home of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Home:
    """An empty place to type commands in, with a cache of its own and no keys."""

    path: Path

    def environ(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MEMSKILL_") and not k.endswith("API_KEY")}
        return {**kept, "MEMSKILL_CACHE_DIR": str(self.path / "cache"), "OMP_NUM_THREADS": "1", **more}

    def memskill(self, *arguments: str, **environ: str) -> Done:
        """The installed command, as a user runs it."""
        done = subprocess.run(
            [sys.executable, "-m", "memskill_cli", *arguments],
            cwd=self.path,
            env=self.environ(**environ),
            capture_output=True,
            text=True,
            timeout=240,
        )
        return Done(done.returncode, done.stdout, done.stderr)

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


@pytest.fixture
def prepared(home: Home) -> Home:
    """A home in which the sample is prepared."""
    done = home.memskill("prepare", "--dataset", "locomo", "--sample", "--quiet")
    assert done.code == 0, done.err
    return home


Flags = Callable[..., list[str]]


@pytest.fixture
def small() -> Flags:
    """Flags of a tiny training or evaluation against a server, without a text encoder to load."""

    def flags(url: str, *more: str) -> list[str]:
        encoder = ["--encoder", "hashing", "--retriever", "hashing"]
        return ["--dataset", "locomo", "--model", "openai/rules", "--api-base", url, *encoder, *more]

    return flags
