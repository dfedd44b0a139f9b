"""Not here yet."""


def eval_() -> None:
    """Not here yet."""
