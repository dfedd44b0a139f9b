"""Ways of remembering that are compared in one harness: same model, retriever, judge, queries and answer prompt.

A method is one class (:class:`~memskill_cli.evaluation.methods.base.Method`) and its line here; its module is imported
when it is asked for.
"""

from __future__ import annotations

import difflib
import importlib

from memskill_cli.errors import UsageError
from memskill_cli.evaluation.methods.base import Method

METHODS = {
    "memskill": "skills:MemSkill",
    "seed-skills": "skills:SeedSkills",
    "random-skills": "skills:RandomSkills",
    "all-skills": "skills:AllSkills",
    "no-memory": "baselines:NoMemory",
    "full-context": "baselines:FullContext",
    "rag": "baselines:Rag",
    "mem0": "mem0:Mem0",
    "langmem": "langmem:LangMem",
}
"""Name as typed: module of this package and class."""


def get(name: str) -> type[Method]:
    """The method called ``name``. UsageError with the nearest name if there is none."""
    if name not in METHODS:
        near = difflib.get_close_matches(name.lower(), METHODS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else ""
        raise UsageError(f"no method is called {name}; there are {', '.join(METHODS)}", hint=hint)
    module, _, cls = METHODS[name].partition(":")
    method: type[Method] = getattr(importlib.import_module(f"{__name__}.{module}"), cls)
    return method
