"""The command ``memskill``, also as ``python -m memskill_cli``."""

from memskill_cli import stopping
from memskill_cli.cli import again


def main() -> None:
    """Entry point of the console script. Signals are heard from here on, also while everything else is imported."""
    stopping.listen(again.typed())
    from memskill_cli.cli import app

    app.main()


if __name__ == "__main__":
    main()
