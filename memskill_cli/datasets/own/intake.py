"""What becomes of a conversation that an importer yields: roles, empty messages, dates, duplicates, redaction."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import count, pairwise

from memskill_cli.datasets.conversations import Conversation, Message, Skipped
from memskill_cli.datasets.message_content import epoch, time_text
from memskill_cli.datasets.own.options import KNOWN_ROLES, ReadOptions
from memskill_cli.datasets.own.store import Store, StoredSession, StoredTurn
from memskill_cli.errors import DataError
from memskill_cli.utils.personal_data import redact_personal


class Redactor:
    """Replaces personal data in texts and ids, if ``active``, and counts what it replaced in ``found``."""

    def __init__(self, active: bool) -> None:
        self.active = active
        self.found: Counter[str] = Counter()

    def text(self, text: str) -> str:
        if not self.active:
            return text
        redacted, found = redact_personal(text)
        self.found += found
        return redacted

    def identifier(self, name: str) -> str:
        """An id; one that has personal data becomes ``id-`` and 12 digits of its digest, so that ids stay different."""
        if not self.active or redact_personal(name)[0] == name:
            return name
        return f"id-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:12]}"


class Intake:
    """Puts conversations into ``store``. ``strict``: two different sessions with one id are an error."""

    def __init__(self, store: Store, options: ReadOptions, redactor: Redactor, skipped: Skipped, strict: bool) -> None:
        self._store, self._options, self._redactor = store, options, redactor
        self._skipped, self._strict = skipped, strict
        self.odd: Counter[str] = Counter()
        """Irregularities that leave nothing out, by kind."""

    def add(self, conversation: Conversation, user: str) -> None:
        """Store a conversation; ``user`` is who it belongs to if it names nobody.

        Raises DataError for an unknown role, or another session with the same id.
        """
        turns = tuple(self._turns(conversation))
        times = [message.timestamp for message in conversation.messages if message.timestamp]
        if any(epoch(later) < epoch(earlier) for earlier, later in pairwise(times)):
            self.odd["sessions whose messages are not in order of time (the order of the file is kept)"] += 1
        if not turns:
            self._skipped["sessions without messages to keep"] += 1
        self._put(
            StoredSession(
                user=self._redactor.identifier(conversation.user_id or user),
                session=self._redactor.identifier(conversation.session_id),
                time=epoch(times[0]) if times else None,
                date=time_text(times[0] if times else None),
                place=conversation.where,
                messages=len(conversation.messages),
                turns=turns,
            )
        )
        self.odd["sessions without a time (they follow the one before them in the file)"] += not times and bool(turns)

    def _turns(self, conversation: Conversation) -> Iterator[StoredTurn]:
        for index, message in enumerate(conversation.messages):
            if message.role not in self._options.roles:
                self._check_role(message, index, conversation.where)
                self._skipped[f"{message.role} messages"] += 1
            elif not (text := self._redactor.text(message.content).strip()):
                self._skipped["empty messages"] += 1
            else:
                speaker = " ".join(self._redactor.text(message.name or message.role).split())
                yield StoredTurn(speaker, text, index)

    def _check_role(self, message: Message, index: int, where: str) -> None:
        if message.role in KNOWN_ROLES:
            return
        near = difflib.get_close_matches(message.role, KNOWN_ROLES, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{where}: messages[{index}].role: unknown role {message.role[:40]!r}{meant}",
            hint=f"to keep such messages: --roles {','.join([*self._options.roles, message.role[:40]])}",
        )

    def _put(self, session: StoredSession) -> None:
        """Store a session. The same one again is left out, and a longer version of one replaces it."""
        before = self._store.get(session.user, session.session)
        if before is None:
            self._store.put(session)
            return
        old, new = ([turn[:2] for turn in one.turns] for one in (before, session))
        if new == old[: len(new)]:
            self._skipped["duplicate sessions"] += 1
        elif old == new[: len(old)]:
            self._skipped["sessions of which a longer version follows"] += 1
            self._store.put(session)
        elif self._strict and not session.place.endswith(f":{session.session}"):  # not a line number in its place
            raise DataError(
                f"{session.place}: session_id {session.session!r} of user {session.user!r} is also that of another "
                f"session, at {before.place}",
                hint="give every session of a user its own session_id, or leave session_id out",
            )
        else:
            self.odd["sessions with an id that was used before (a number is added to it)"] += 1
            names = (f"{session.session}#{number}" for number in count(2))
            free = next(name for name in names if self._store.get(session.user, name) is None)
            self._store.put(session._replace(session=free))
