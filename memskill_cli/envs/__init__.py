"""Text environments, each played in a worker process.

Other packages use ``env_pool``. ``env_worker`` is the program of the worker processes. ``alfworld/`` has everything
about ALFWorld; only its ``textworld_env`` imports alfworld and textworld, and only in worker processes.
"""
