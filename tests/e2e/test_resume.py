"""A run with damaged checkpoints, as typed: what is named, what is used instead, and that it goes on as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memskill_cli.testing.server import MockLLMServer

from ..conftest import Home, tiny

FLAGS = ["--run", "r", "--outer-epochs", "1", "--inner-epochs", "3", "--batch-size", "1", "--top-k", "2"]


def learned(run: Path) -> dict[str, Any]:
    skip = {"seconds", "llm_calls", "cached_calls"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    files = [file for folder in ("checkpoints", "stages") for file in (run / folder).rglob("*") if file.is_file()]
    found: dict[str, Any] = {str(file.relative_to(run)): file.read_bytes() for file in files}
    names = ("skill_bank.json", "hard_cases.jsonl")
    found |= {name: (run / name).read_bytes() for name in names}
    return found | {"metrics": [{k: v for k, v in row.items() if k not in skip} for row in rows]}


def flip(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def test_damaged_checkpoints_are_named_and_gone_back_from(prepared: Home) -> None:
    run = prepared.path / "runs" / "r"
    with MockLLMServer() as server:
        assert prepared.memskill("train", *tiny(server.url, *FLAGS), "--quiet").code == 0
        whole, asked = learned(run), len(server.requests)
        newest = run / "checkpoints" / "000003"
        flip(newest / "controller.safetensors")

        evaluation = ["eval", *tiny(server.url, "--run", "r", "--limit", "1", "--no-judge"), "--quiet"]
        named, best = prepared.together([*evaluation, "--checkpoint", str(newest)], evaluation[:-1])
        assert named.code == 1
        assert f"{newest}/controller.safetensors: the content does not match its sha256 in checkpoint.json" in " ".join(
            named.err.split()
        )
        assert "Traceback" not in named.err
        assert best.code == 0, best.err
        told = " ".join(best.err.split())
        assert "000003/controller.safetensors" in told
        assert "with the controller of checkpoint 000002" in told

        # As if it had been killed after the last checkpoint.
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
        before = len(server.requests)
        done = prepared.memskill("train", "--run", "r", "--resume")
        assert done.code == 0, done.err
        told = " ".join(done.err.split())
        assert "000003/controller.safetensors" in told
        assert "trying the checkpoint before it" in told
        assert "1 inner epochs after 2 have no checkpoint and are run again" in told
        assert len(server.requests) == before > asked, "every reply was in the cache"
    assert learned(run) == whole
