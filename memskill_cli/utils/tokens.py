"""The cl100k_base tokenizer. Sizes of spans and prompts are numbers of its tokens."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from memskill_cli.errors import DataError

if TYPE_CHECKING:
    import tiktoken


def count_tokens(text: str) -> int:
    """The length of ``text`` in cl100k_base tokens."""
    return len(cl100k().encode_ordinary(text))


@functools.cache
def cl100k() -> tiktoken.Encoding:
    """The cl100k_base tokenizer, from the file in litellm, so that nothing is downloaded."""
    import tiktoken

    litellm = importlib.util.find_spec("litellm")  # finds the folder without importing it
    assert litellm is not None
    assert litellm.submodule_search_locations
    folder = Path(litellm.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        return tiktoken.get_encoding("cl100k_base")
    except OSError as error:
        raise DataError(
            f"the cl100k_base tokenizer is not in {folder} and cannot be downloaded: {error}",
            hint="pip install --force-reinstall litellm, or use another --span-mode than fixed-length",
        ) from error
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before
