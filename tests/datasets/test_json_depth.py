"""The bound on nesting: the same depth as a plain count, wherever the chunks end."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.datasets import json_depth
from memskill_cli.datasets.json_depth import DepthLimited
from memskill_cli.errors import DataError

TEXTS = st.text(st.sampled_from('[]{}"\\aé'), max_size=12)
JSON = st.recursive(
    st.one_of(TEXTS, st.integers(0, 9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=20,
)


def depth(value) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def refused(text: bytes, limit: int, sizes: list[int]) -> bool:
    file = DepthLimited(io.BytesIO(text), "x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_depth, "MAX_DEPTH", limit)
        try:
            taken = b""
            while (chunk := file.read(sizes[len(taken) % len(sizes)])) != b"":
                taken += chunk
        except DataError:
            return True
    assert taken == text
    return False


@given(JSON, st.lists(st.integers(1, 7), min_size=1, max_size=5), st.booleans())
def test_refused_exactly_when_nested_deeper(value, sizes, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert not refused(text, depth(value), sizes)
    if depth(value):
        assert refused(text, depth(value) - 1, sizes)


def test_deep_nesting_is_an_error_that_names_the_file():
    with pytest.raises(DataError, match="x: nested deeper than 1000 levels"):
        DepthLimited(io.BytesIO(b"[" * 100_000), "x").read()
