"""Train on the small LoCoMo sample, compare with plain retrieval, and show the skills. Run: python this_file.py

If MEMSKILL_URL is set, it is the OpenAI-compatible server to use, with the model MEMSKILL_MODEL. Otherwise the embedded
model is used.
"""

import os

from memskill_cli import SkillBank, evaluate, prepare, train

url = os.environ.get("MEMSKILL_URL")
models = {"api_base": url, "model": os.environ.get("MEMSKILL_MODEL", "gpt-4o-mini"), "api_key": "none"} if url else {}

prepare("locomo", sample=True)
run = train("locomo", run="demo", preset="demo", notice=print, **models)
for summary in evaluate(run="demo", methods=["memskill", "rag"], **models):
    print(f"{summary['method']}: F1 {100 * summary['f1']:.1f} on {summary['queries']} queries")
print("skills:", ", ".join(SkillBank.load(run.skill_bank).names))
