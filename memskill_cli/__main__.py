"""``python -m memskill_cli`` is the command ``memskill``."""

from memskill_cli.cli.app import main

if __name__ == "__main__":
    main()
