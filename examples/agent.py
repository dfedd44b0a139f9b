"""A chat agent that remembers. Run it, tell it something, end it with Ctrl-D, run it again and ask.

    python examples/agent.py --user anna
    python examples/agent.py --user anna --model openai/gpt-4o-mini --skills runs/support

The model is any that litellm knows. Without --model it is the embedded one, which is small: it shows how the parts fit
together, and its answers are poor.
"""

import argparse
import os
import uuid

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # litellm would ask the network for prices

import litellm

from memskill_cli import Memory
from memskill_cli.llm import local_model
from memskill_cli.utils import process

SYSTEM = "You are a helpful assistant. Answer in one or two sentences. What you remember about the user:\n{known}"
RECENT = 10
"""Messages of this conversation that the model sees again."""


def main() -> None:
    given = arguments()
    server = {"api_base": given.api_base, "api_key": given.api_key}
    options = {"model": given.model, "skills": given.skills, "encoder": given.encoder, "retriever": given.encoder}
    session, said = uuid.uuid4().hex, []
    # At the end of the block the messages that still wait are read.
    with Memory.open(given.memory, **options, **server) as memory:
        print("What you say is remembered. Ctrl-D ends the conversation.")
        while (text := ask()) is not None:
            known = memory.context(text, user_id=given.user, max_tokens=800) or "nothing yet"
            said.append({"role": "user", "content": text})
            prompt = [{"role": "system", "content": SYSTEM.format(known=known)}, *said[-RECENT:]]
            answer = litellm.completion(model_name(given.model), prompt, max_tokens=200, **server)
            said.append({"role": "assistant", "content": answer.choices[0].message.content or ""})
            print(f"agent: {said[-1]['content']}")
            memory.add(said[-2:], user_id=given.user, session_id=session)


def ask() -> str | None:
    """The next line that is not empty; None at the end."""
    try:
        while not (text := input("you: ").strip()):
            pass
    except EOFError:
        print()
        return None
    return text


def model_name(model: str) -> str:
    """The name by which litellm knows the model."""
    if model != "embedded":
        return model
    process.own()  # this process is ours: the model stays loaded between calls
    local_model.register()
    return "memskill_embedded/"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A chat agent that remembers.")
    parser.add_argument("--user", required=True)
    parser.add_argument("--memory", default="agent-memory", help="a folder")
    parser.add_argument("--skills", help="a run, or the word seeds (default)")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--api-base")
    parser.add_argument("--api-key")
    parser.add_argument("--encoder", help="default: as in the settings")
    return parser.parse_args()


if __name__ == "__main__":
    main()
