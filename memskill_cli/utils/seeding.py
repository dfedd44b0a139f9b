"""Everything random comes from named seeds, so that no result depends on timing or on the order of completion."""

from __future__ import annotations

import hashlib
import random


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed that depends on all ``parts`` and on nothing else (never on ``hash()``)."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def batch_indices(size: int, population: int, number: int, seed: int) -> list[int]:
    """Which of ``population`` traces make up batch ``number``, shape (size,).

    Batches walk through one shuffle after another, so every trace is read equally often; a batch's makeup follows
    from its number alone, so a resumed run needs no memory of the ones before.
    """
    chosen = []
    for position in range(number * size, (number + 1) * size):
        cycle, place = divmod(position, population)
        order = list(range(population))
        random.Random(seed_from(seed, "traces", cycle)).shuffle(order)  # noqa: S311 - not for secrets
        chosen.append(order[place])
    return chosen
