"""Engines: run jobs on traces in this process, or on the nodes of a Ray cluster."""
