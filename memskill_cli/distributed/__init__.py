"""Where the work on traces happens: in this process, or on the machines of a Ray cluster."""
