"""Seeds from names, so that random results depend neither on timing nor on the order of completion."""

from __future__ import annotations

import hashlib
import random


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed that depends on all ``parts`` and on nothing else (never on ``hash()``)."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def batch_indices(size: int, population: int, number: int, seed: int) -> list[int]:
    """The indices, below ``population``, of the traces in batch ``number``. Shape (size,).

    Batches go through one random permutation after another, so all traces are read equally often. A batch depends on
    its number only, so a resumed run does not need the previous batches.
    """
    chosen = []
    for position in range(number * size, (number + 1) * size):
        cycle, place = divmod(position, population)
        order = list(range(population))
        random.Random(seed_from(seed, "traces", cycle)).shuffle(order)  # noqa: S311 - not for secrets
        chosen.append(order[place])
    return chosen
