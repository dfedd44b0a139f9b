"""memskill: a memory for LLM agents that learns how to remember.

An implementation of MemSkill (arXiv 2602.02474). The modules are imported where they are used, so that
``import memskill_cli`` costs nothing; start reading at :mod:`memskill_cli.training.trainer`.
"""

__version__ = "0.1.0"
