"""Not here yet."""


def train() -> None:
    """Not here yet."""
