"""What tests of disturbed runs share. Made only for those who ask."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from memskill_cli.testing.server import MockLLMServer

from ..conftest import Home
from ..fault_injection import Nursery
from .resume_harness import TRAIN, Place, Settle, Undisturbed, learned, think


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Of all lives that are disturbed."""
    home = Home(tmp_path_factory.mktemp("nursery"))
    with Nursery(home.path, home.environ(), hash_seed=2) as opened:
        yield opened


@pytest.fixture
def settle(new_home: Callable[[], Home], nursery: Nursery) -> Iterator[Settle]:
    """Makes places; their servers stop with the test. What each life came to is printed."""
    with ExitStack() as stack:

        def make(*command: str, home: Home | None = None) -> Place:
            server = stack.enter_context(MockLLMServer(think, latency=0.005))
            place = Place(home or new_home(), nursery, server, [*command, "--api-base", server.url])
            stack.callback(lambda: print(*place.told, sep="\n"))
            return place

        yield make


@pytest.fixture(scope="session")
def undisturbed(new_home: Callable[[], Home]) -> Undisturbed:
    """One run from beginning to end, in a process of its own."""
    home = new_home()
    with MockLLMServer(think, latency=0.005) as server:
        command = [*TRAIN, "--api-base", server.url]
        done = home.memskill(*command, "--quiet", PYTHONHASHSEED="1")
        assert done.code == 0, done.err
        found = learned(home.path / "runs" / "k")
        return Undisturbed(home, found, Counter(json.dumps(r.messages) for r in server.requests))
