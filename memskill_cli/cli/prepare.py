"""Not here yet."""


def prepare() -> None:
    """Not here yet."""
