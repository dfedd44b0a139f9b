"""What a command opens to talk to models is named by what it is, and closed again."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from memskill_cli.config import load
from memskill_cli.services import Access, services


def encoder_names(folder: Path, api_base: str, encoder: str) -> tuple[str, str]:
    """The names of the state and the retrieval encoder, after the latter has been used."""
    settings = load(
        overrides={
            **{f"models.{role}": "openai/m" for role in ("executor", "answer", "judge", "designer")},
            "models.api_base": api_base,
            "encoders.state": encoder,
            "encoders.retrieval": "hashing",
        }
    )

    async def session() -> tuple[str, str]:
        access = Access(cache_dir=folder)
        async with services(settings, access, folder / "usage.jsonl", "train", lambda text: None) as opened:
            spaces = opened.world.spaces
            before = encoder_threads()
            await spaces.retrieval.aencode(["a text"])
            assert encoder_threads() > before
            return spaces.state.name, spaces.retrieval.name

    return asyncio.run(session())


def encoder_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("encoder")}


def test_encoders_are_closed_with_the_command(tmp_path: Path) -> None:
    before = encoder_threads()
    encoder_names(tmp_path, "http://127.0.0.1:9/v1", "hashing")
    assert encoder_threads() <= before


def test_vectors_of_two_servers_are_not_taken_for_each_other(tmp_path: Path) -> None:
    one, other = (encoder_names(tmp_path, f"http://{host}/v1", "litellm:openai/e") for host in ("one", "other"))
    assert "openai/e" in one[0]
    assert one[0] != other[0]
    assert one[1] == other[1], "an encoder of this machine is the same wherever the models are"
