"""The errors of memskill. Each says what happened, where, and what to do next.

The command line prints an error as one line (plus the hint) and exits with its ``exit_code``; a traceback is
shown only with ``--debug``. The code that raises an error removes API keys from its text.
"""

from __future__ import annotations

from typing import Any, Literal


class MemskillError(Exception):
    """An error that the user can act on.

    ``message`` is one line without a full stop at the end; ``hint`` says what to do next, preferably as a command.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling, also of subclasses whose constructors have more parameters."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[MemskillError], args: tuple[Any, ...], attributes: dict[str, Any]) -> MemskillError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class UsageError(MemskillError):
    """An option, an argument or a setting is invalid."""

    exit_code = 2


class DataError(MemskillError):
    """A data file is missing or damaged, or has unexpected content."""


class DownloadError(DataError):
    """A file could not be downloaded."""


class EncoderError(MemskillError):
    """A text encoder is unknown or could not be loaded."""


class DeviceError(MemskillError):
    """A device that a network should run on does not exist."""


class PluginError(MemskillError):
    """A plug-in cannot be loaded, uses a name that is already in use, or raises an exception."""


class SkillBankError(MemskillError):
    """A skill bank file does not match its schema, or a change violates the bank's rules."""


class MemoryBankError(MemskillError):
    """A memory bank on disk cannot be used."""


class RunError(MemskillError):
    """A run directory is missing or damaged, or cannot be used in this way."""


class RunLockedError(RunError):
    """Another running process uses the run."""


class CheckpointError(RunError):
    """A checkpoint is damaged, was written by another program, or has a newer format."""


class TrackerError(MemskillError):
    """The tracker named by ``--tracker`` cannot be used."""


class ModelError(MemskillError):
    """A language model is not available, or its calls failed after all retries."""


class AuthError(ModelError):
    """A role has no key, or the provider rejected all its keys."""


class UnknownModelError(ModelError):
    """The provider does not know the model's name, or the name is invalid."""


class RejectedPromptError(ModelError):
    """A model or its provider refuses one prompt: a content filter, a refusal, or a prompt that is too long.

    It concerns this prompt and not the server: callers record it and continue with the others. ``too_long``: whether
    a shorter prompt would be accepted.
    """

    too_long = False


class RejectedRequestError(ModelError):
    """A server refuses a request for another reason than its prompt, its key or its model."""


class UnreadableReplyError(ModelError):
    """A model's reply could not be parsed, and neither could its second reply, after it was shown the error.

    Raised by the parsers passed to :meth:`memskill_cli.llm.client.LLMClient.ask`. It concerns one reply and not the
    network: callers count it and continue. The client sets what both replies took; ``seconds`` is wall-clock time.
    """

    prompt_tokens = 0
    completion_tokens = 0
    seconds = 0.0


class ResourceLimitError(MemskillError):
    """This machine, or a limit of the shell, gives no more memory, open files, threads or disk space."""


class GameError(MemskillError):
    """A text game could not be continued; other games are not affected.

    ``kind`` is ``died`` (its process ended), ``hung`` (no reply before the deadline; the process was killed) or
    ``broken`` (the game's files cannot be played).
    """

    def __init__(self, message: str, *, kind: Literal["died", "hung", "broken"], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class StoppedError(MemskillError):
    """A signal stopped the command early. Finished work is kept, and the command can be continued."""

    exit_code = 130


class BudgetExceededError(MemskillError):
    """The next call would exceed ``--max-cost``. Finished work is kept, and the run can be continued."""

    exit_code = 3
