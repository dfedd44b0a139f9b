"""Makes all vectors of a store anew, with another encoder."""

from __future__ import annotations

from collections.abc import Callable

from memskill_cli.live.store import Store
from memskill_cli.live.transfer import vectors_of
from memskill_cli.live.users import encoder_identity
from memskill_cli.memory.encoder_pair import EncoderPair


async def reindex(store: Store, encoders: EncoderPair, progress: Callable[[int, int], None]) -> int:
    """Encode the memories of all users; the number of memories. Sources are encoded when they are next needed.

    A user is changed in one transaction, so after an interruption the rest can be done by another call. ``progress`` is
    called with the users done and their number.
    """
    identity, users, count = encoder_identity(encoders), store.users(), 0
    for done, user in enumerate(users, 1):
        file = store.open_file(user)
        try:
            if file.fact("encoder", identity) != identity:
                memories = file.rows("SELECT number, text FROM memories ORDER BY number")
                vectors = await vectors_of([text for _, text in memories], encoders)
                with file.transaction():
                    for (number, _), (state, retrieval) in zip(memories, vectors, strict=True):
                        file.set_vectors(number, state, retrieval)
                    file.run("DELETE FROM source_vectors")
                    file.set_fact("encoder", identity)
                count += len(memories)
        finally:
            file.close()
        progress(done, len(users))
    return count
