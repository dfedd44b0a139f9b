"""One hierarchy of errors. Each says what happened, where, and the next command to type.

The command line prints an error as one line (plus the hint) and exits with its ``exit_code``; a traceback is
shown only with ``--debug``. Nothing in an error may carry a key: whoever raises one has scrubbed it.
"""

from __future__ import annotations

from typing import Any, Literal


class MemskillError(Exception):
    """Something went wrong that a person can act upon.

    ``message`` is one line without a trailing full stop's worth of ceremony; ``hint`` is what to do next, ideally a
    command to type.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, whatever a subclass asks for besides a message."""
        return _as_it_was, (type(self), self.args, self.__dict__)


def _as_it_was(kind: type[MemskillError], args: tuple[Any, ...], facts: dict[str, Any]) -> MemskillError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


class UsageError(MemskillError):
    """The command line or the configuration asks for something that makes no sense."""

    exit_code = 2


class DataError(MemskillError):
    """A benchmark's file is missing, broken or not what it claims to be."""


class DownloadError(DataError):
    """A file could not be fetched."""


class EncoderError(MemskillError):
    """A text encoder is unknown or could not be loaded."""


class DeviceError(MemskillError):
    """A network is to run on a device that is not there."""


class PluginError(MemskillError):
    """A plug-in file or an installed package's extension cannot be loaded, or takes a name that is taken."""


class SkillBankError(MemskillError):
    """A skill bank file breaks its schema, or a change breaks the bank's rules."""


class MemoryBankError(MemskillError):
    """A memory bank on disk cannot be used."""


class RunError(MemskillError):
    """A run directory is missing, damaged, or does not fit what is asked of it."""


class RunLockedError(RunError):
    """Another live process owns the run."""


class CheckpointError(RunError):
    """A checkpoint is damaged, foreign or of a newer format."""


class TrackerError(MemskillError):
    """Metrics cannot go where ``--tracker`` sends them."""


class ModelError(MemskillError):
    """A language model could not be had or did not answer, after every retry that made sense."""


class AuthError(ModelError):
    """Every key of a role was refused."""


class UnknownModelError(ModelError):
    """The provider does not know the model's name, or the name itself makes no sense."""


class UnreadableReplyError(ModelError):
    """A model answered, and the answer could not be understood (asked again once, with the error shown).

    Raised by the parsers handed to :meth:`memskill_cli.llm.client.LLMClient.ask`; it is a fault of one reply, never of
    the network, and callers count it rather than stop.
    """


class GameError(MemskillError):
    """A text game could not be played on; other games are not concerned.

    ``kind`` is ``died`` (its process ended), ``hung`` (no reply before the deadline; the process was killed) or
    ``broken`` (the game's files cannot be played).
    """

    def __init__(self, message: str, *, kind: Literal["died", "hung", "broken"], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class StoppedError(MemskillError):
    """A signal asked for an early end. What was done is kept and the command can go on."""

    exit_code = 130


class BudgetExceededError(MemskillError):
    """The next call would go past ``--max-cost``. What was paid for is kept and the run can go on."""

    exit_code = 3
