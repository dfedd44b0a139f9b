"""The command ``memskill``, also as ``python -m memskill_cli``."""

import gc

from memskill_cli.cli import resume_command
from memskill_cli.utils import signals


def main() -> None:
    """Entry point of the console script. Signals are heard from here on, also while everything else is imported."""
    signals.install_handlers(resume_command.current_command())
    # As Python has it, all objects are searched for garbage ten times while a command's libraries are imported, and
    # now and then, half a second each time, while replies wait.
    gc.set_threshold(50_000, 20, 20)
    from memskill_cli.cli import app

    app.main()


if __name__ == "__main__":
    main()
