"""The options of ``memskill prepare``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memskill_cli.app.prepare import prepare_options
from memskill_cli.config.datasets import DATASETS
from memskill_cli.datasets.base import Dataset, ReaderCallbacks, SourceFile
from memskill_cli.errors import UsageError
from memskill_cli.types import Trace


class Sized(Dataset):
    """A dataset with variants."""

    name = "sized"
    variants = ("small", "large", "train")

    def read(self, part: SourceFile, watch: ReaderCallbacks) -> Iterator[Trace]:
        raise NotImplementedError


@pytest.fixture
def sized() -> Iterator[str]:
    DATASETS.register("sized", Sized)
    yield "sized"
    DATASETS.unregister("sized")


def test_a_variant_is_a_split(sized: str) -> None:
    options = prepare_options(sized, ["test-large"], ["small", "train", "large"], 3)
    assert options.splits == ("test-large", "test-small", "train")
    assert options.limit == 3


def test_a_dataset_without_variants_says_so_and_names_no_other() -> None:
    with pytest.raises(UsageError, match=r"^locomo has no variants$") as refused:
        prepare_options("locomo", (), ["50"], 0)
    assert refused.value.hint == "leave out --variant: memskill prepare --dataset locomo"


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="--limit -1: the number of traces must be 0 or above"):
        prepare_options("locomo", (), (), -1)
