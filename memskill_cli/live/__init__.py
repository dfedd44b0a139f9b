"""The memory of a user's own agent: turns are added, read with trained skills, searched and erased."""
