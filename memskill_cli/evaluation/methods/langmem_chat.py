"""memskill's model client and encoder as a LangChain chat model and embeddings. Imports langchain_core.

LangMem uses tool calls; the model client sends and receives text. So the prompt describes the functions in words, and
the reply is one JSON object with a list of calls. The rest of the prompts and the execution of calls are LangMem's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool

from memskill_cli.errors import UnreadableReplyError
from memskill_cli.evaluation.methods.external import JSON_TEXT, LLMBridge, read_object
from memskill_cli.llm.client import Message
from memskill_cli.memory.encoders import CachedEncoder

OPENING = "You act by calling functions."
_HOW = """{opening} Reply with one JSON object and nothing else:
{{"calls": [{{"name": "a function's name", "arguments": {{"its": "arguments"}}}}]}}
All calls stand in this one list, in the order in which they are to be made. {choice}

These are the functions, each with the JSON schema of its arguments:
{functions}"""
_SESSION = re.compile(r"(?<=session_)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""LangMem gives each session a random name. With a fixed name the same prompt is found in the cache."""
_CALLS = (
    'call ::= "{\\"name\\": \\"" name "\\", \\"arguments\\": " object "}"\n'
    # Functions of LangMem have at most three arguments. Without a limit a small model repeats one.
    'object ::= "{" (string ": " value (", " string ": " value){0,2})? "}"\n'
    'array ::= "[" (value (", " value){0,3})? "]"\n'
    'value ::= object | array | string | "\\"\\"" | "-"? [0-9]{1,9} | "true" | "false" | "null"\n'
) + JSON_TEXT


class LLMClientChat(BaseChatModel):
    """The executor model with LangChain's interface. It can be called within the event loop only."""

    model: Any
    """An :class:`LLMBridge`. The type is Any because this is a pydantic class, which would validate it."""

    @property
    def _llm_type(self) -> str:
        return "memskill"

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: str | None = None, **_: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(tool)["function"] for tool in tools], tool_choice=tool_choice)

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError("can be called within the event loop only")

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        *,
        tools: Sequence[dict[str, Any]] = (),
        tool_choice: str | None = None,
        **_: Any,
    ) -> ChatResult:
        forced = tool_choice is not None
        asked = as_text(messages, tools, forced=forced)
        model: LLMBridge = self.model
        calls = await model.ask(asked, _calls, _grammar(tools, forced)) or []
        name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]  # not random, because later prompts quote it
        numbered = [{**call, "id": f"call_{name}_{i}", "type": "tool_call"} for i, call in enumerate(calls)]
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content="", tool_calls=numbered))])


class EncoderEmbeddings(Embeddings):
    """The retrieval encoder with LangChain's interface. It can be called within the event loop only."""

    def __init__(self, encoder: CachedEncoder) -> None:
        self._encoder = encoder

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return (await self._encoder.aencode(texts)).tolist()

    async def aembed_query(self, text: str) -> list[float]:
        return (await self._encoder.aencode([text], "query"))[0].tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise NotImplementedError("can be called within the event loop only")

    def embed_query(self, text: str) -> list[float]:
        raise NotImplementedError("can be called within the event loop only")


def as_text(messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]], *, forced: bool) -> list[Message]:
    """Convert messages with tool calls to messages without: system first, and never the same role twice in a row."""
    functions = "\n".join(
        f"- {tool['name']}: {tool['description']}\n  {json.dumps(tool['parameters'])}" for tool in tools
    )
    choice = "Make at least one call." if forced else "An empty list makes no call."
    parts: list[Message] = [
        {"role": "system", "content": _HOW.format(opening=OPENING, choice=choice, functions=functions)}
    ]
    for message in messages:
        text = _SESSION.sub("1", message.text)
        role = "user"
        if isinstance(message, SystemMessage):
            role = "system"
        elif isinstance(message, AIMessage):
            calls = [{"name": call["name"], "arguments": call["args"]} for call in message.tool_calls]
            role, text = "assistant", json.dumps({"calls": calls}, ensure_ascii=False)
        elif isinstance(message, ToolMessage):
            text = f"What became of the call {message.tool_call_id}:\n{text}"
        if parts[-1]["role"] == role:
            parts[-1] = {"role": role, "content": f"{parts[-1]['content']}\n\n{text}"}
        else:
            parts.append({"role": role, "content": text})
    return parts


def _calls(text: str) -> list[dict[str, Any]]:
    """The calls in a reply. LangMem checks the names of the functions and their arguments."""
    calls = read_object(text, "calls")["calls"]
    if not isinstance(calls, list):
        raise UnreadableReplyError('"calls" must be a list')
    for call in calls:
        if not (
            isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)
        ):
            raise UnreadableReplyError('each call must be {"name": text, "arguments": object}')
    return [{"name": call["name"], "args": call["arguments"]} for call in calls]


def _grammar(tools: Sequence[dict[str, Any]], forced: bool) -> str:
    some = 'call (", " call){0,7}'
    root = f'root ::= "{{\\"calls\\": [" {some if forced else f"({some})?"} "]}}"'
    names = "name ::= " + " | ".join(f'"{tool["name"]}"' for tool in tools)
    return f"{root}\n{names}\n{_CALLS}"
