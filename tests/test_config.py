"""Settings: precedence, checks, and the nearest name for a typo."""

from __future__ import annotations

from pathlib import Path

import pytest

from memskill_cli import config
from memskill_cli.errors import UsageError


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('seed = 3\n[train]\ntop_k = 4\nbatch_size = 9\n[models]\njudge = "openai/x"\n')
    found = config.load(preset="demo", file=file, overrides={"train.top_k": 6, "seed": None}, sets=["ppo.gamma=0.5"])
    assert (found.train.max_spans, found.train.batch_size, found.train.top_k) == (2, 9, 6)
    assert (found.seed, found.models.judge, found.ppo.gamma) == (3, "openai/x", 0.5)


def test_the_paper_preset_has_the_published_settings() -> None:
    paper = config.load(preset="paper")
    assert (paper.train.inner_epochs, paper.train.outer_epochs, paper.train.batch_size) == (100, 10, 4)
    assert (paper.train.span_mode, paper.train.top_k, paper.memory.top_k) == ("full-session", 3, 20)
    assert (paper.eval.span_mode, paper.eval.chunk_size, paper.eval.chunk_overlap) == ("fixed-length", 512, 64)
    assert (paper.eval.top_k, paper.models.answer_max_tokens, paper.ppo.epochs) == (7, 32, 2)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[train]\ntop_kk = 4\n", "did you mean train.top_k?"),
        ("[trian]\ntop_k = 4\n", "did you mean train.top_k?"),
        ('[train]\nspan_mode = "full-sesion"\n', "did you mean full-session?"),
        ('[train]\ntop_k = "many"\n', "is not a whole number"),
        ("[train]\ntop_k = true\n", "is not a whole number"),
        ("[train]\ntop_k = 0\n", "must be above 0"),
        ("[train\n", "not TOML"),
        ("[eval]\nchunk_overlap = 512\n", "must be smaller than chunk size"),
        ("[reward]\nquery_ratio = 0.0\n", "must be above 0"),
    ],
)
def test_a_wrong_config_file_is_refused_with_its_reason(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "my.toml"
    file.write_text(content)
    with pytest.raises(UsageError) as failure:
        config.load(file=file)
    assert says in f"{failure.value.message} {failure.value.hint}"


def test_every_setting_survives_toml(tmp_path: Path) -> None:
    found = config.load(preset="paper", sets=["limits.max_cost=1.5", "train.evolve=no"])
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml(found))
    assert config.from_dict(config.read_toml(file)) == found


def test_the_digest_depends_on_values_alone() -> None:
    assert config.digest({"a": 1, "b": [2]}) == config.digest({"b": [2], "a": 1}) != config.digest({"a": 1, "b": [3]})
