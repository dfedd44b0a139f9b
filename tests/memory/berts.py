"""Small models on disk, as the Hub would give them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import transformers


def save(model: transformers.PreTrainedModel, folder: Path, words: Sequence[str]) -> Path:
    """Make ``folder`` with ``model`` and a tokenizer that knows ``words``."""
    folder.mkdir(parents=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    transformers.BertTokenizerFast(vocab=str(vocabulary)).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
