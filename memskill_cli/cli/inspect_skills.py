"""Not here yet."""


def inspect_skills() -> None:
    """Not here yet."""
