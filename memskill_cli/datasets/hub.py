"""Files of Hugging Face datasets, through ``huggingface_hub``: its mirrors (HF_ENDPOINT), tokens and cache."""

from __future__ import annotations

from pathlib import Path

from memskill_cli.download import Report
from memskill_cli.errors import DownloadError


def from_hub(address: str, *, hint: str = "", report: Report = lambda done, total: None) -> Path:
    """The local copy of ``hf://datasets/<owner>/<name>/<file>``, fetched unless the Hub's cache has it."""
    from huggingface_hub import hf_hub_download

    _, owner, name, file = address.removeprefix("hf://").split("/", 3)
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, repo_type="dataset"))
    except Exception as error:
        raise DownloadError(f"could not download {address}: {error}", hint=hint) from error
