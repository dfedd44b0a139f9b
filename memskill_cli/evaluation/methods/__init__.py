"""The methods of making memory that `eval` compares with the same model, retriever, judge, queries and answer prompt.

A method is a class (:class:`~memskill_cli.evaluation.methods.base.Method`) with an entry in :data:`METHODS`. Its module
is imported when it is used. Methods are an extension point (docs/extending.md).
"""

from __future__ import annotations

from memskill_cli.evaluation.methods.base import Method
from memskill_cli.utils.registry import Registry

METHODS: Registry[type[Method]] = Registry(
    "method",
    "memskill.methods",
    {
        "memskill": f"{__name__}.skills:MemSkill",
        "seed-skills": f"{__name__}.skills:SeedSkills",
        "random-skills": f"{__name__}.skills:RandomSkills",
        "all-skills": f"{__name__}.skills:AllSkills",
        "no-memory": f"{__name__}.baselines:NoMemory",
        "full-context": f"{__name__}.baselines:FullContext",
        "rag": f"{__name__}.baselines:Rag",
        "mem0": f"{__name__}.mem0:Mem0",
        "langmem": f"{__name__}.langmem:LangMem",
    },
)

register_method = METHODS.named
"""``@register_method("name")`` makes a :class:`Method` available as ``--method name``."""


def get(name: str) -> type[Method]:
    """The method called ``name``. UsageError with the nearest name if there is none."""
    return METHODS.get(name)
