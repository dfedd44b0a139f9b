"""A pytest plugin for the tests of a mutant: the fastest tests run first, because one failure is enough.

Modules that memskill imports only when they are needed are imported here, once, before mutants are forked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import json_repair  # noqa: F401
import sklearn.cluster
import sklearn.feature_extraction.text  # noqa: F401
import snowballstemmer  # noqa: F401
import torch

from memskill_cli.utils.tokens import count_tokens

count_tokens("")  # loads the tokenizer
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # the first optimizer imports 800 modules


def pytest_collection_modifyitems(items: list[Any]) -> None:
    known = Path("mutmut-stats.json")
    took = json.loads(known.read_text())["duration_by_test"] if known.exists() else {}
    items.sort(key=lambda item: took.get(item.nodeid, 0.0))
