"""Models of a small world, in which two kinds of facts are told and a literal executor writes down one kind a skill.

None of the seed skills is for allergies. What a model says follows from its prompt alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from memskill_cli.testing.server import Request

HELP = {
    "change": "add",
    "name": "allergies",
    "description": "Write down allergies: the text says who must avoid what.",
    "body": "## Purpose\nKeep every ALLERGY.\n\n## How to apply\nOne INSERT each.",
    "action": "insert",
    "why": "allergies are lost",
}
"""A skill that helps."""
HARM = {"change": "refine", "name": "insert", "body": "## Purpose\nBLUR everything.", "why": "shorter"}
"""A change that harms: what is written down says "something"."""


def is_refinement(request: Request) -> bool:
    """Whether the designer is asked for changes, after its analysis."""
    return request.role == "designer" and "<limit>" in request.messages[-1]["content"]


def designed(request: Request, change: Mapping[str, Any]) -> str:
    """A designer that wants ``change``, whatever its analysis says."""
    if is_refinement(request):
        return json.dumps({"summary": change["why"], "changes": [change]})
    pattern = {"name": "lost", "cases": [1], "cause": "storage", "explanation": "x", "fix": "y"}
    advice = {"change": "add", "skill": "", "why": "storage", "priority": 1}
    return json.dumps({"patterns": [pattern], "recommendations": [advice], "summary": "lost"})


def read_or_answered(request: Request) -> str:
    """What the executor and the answering model say."""
    text = request.messages[-1]["content"]
    if request.role == "answer":
        kind, who = re.search(r"What is the (\w+) of (\w+)\?", text).groups()  # type: ignore[union-attr]
        memories = re.findall(r"^\[\d+\] (\w+) (\w+) (\w+)$", text, flags=re.MULTILINE)
        return next((value for w, k, value in memories if (w, k) == (who, kind)), "unknown")
    skill, _, span = text.partition("<span>")
    who, kind, value = re.search(r"(\w+)'s (\w+) is (\w+)", span).groups()  # type: ignore[union-attr]
    if "Action type: INSERT" not in skill or ("ALLERGY" in skill) != (kind == "allergy"):
        return "ACTION: NOOP"
    return f"ACTION: INSERT\nMEMORY: {who} {kind} {'something' if 'BLUR' in skill else value}"
