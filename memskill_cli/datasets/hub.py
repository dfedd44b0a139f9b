"""Download files of Hugging Face datasets with ``huggingface_hub``, its mirrors (HF_ENDPOINT), tokens and cache.

One request first checks whether the Hub can be reached, because its client would retry for 23 seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from memskill_cli.errors import DownloadError, UsageError
from memskill_cli.utils.download import Report

if TYPE_CHECKING:
    from huggingface_hub.utils import tqdm

PREFIX = "hf://datasets/"


def from_hub(address: str, *, hint: str = "", report: Report = lambda done, total: None) -> Path:
    """Download ``hf://datasets/<owner>/<name>/<file>`` unless its newest version is cached; return the cached file.

    Without a network, any cached version is used. Raises UsageError for an address of another form, DownloadError with
    ``hint`` if the file cannot be downloaded.
    """
    import httpx
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo, file = _parsed(address)
    try:
        get_hf_file_metadata(hf_hub_url(repo, file, repo_type="dataset"))
        return Path(hf_hub_download(repo, file, repo_type="dataset", tqdm_class=_bar(report)))
    except HfHubHTTPError as error:
        problem = f"the Hub answered {error.response.status_code} {error.response.reason_phrase}".rstrip()
    except (httpx.TransportError, OSError) as error:  # OSError: offline mode, a connection lost later
        problem = (str(error) or type(error).__name__).splitlines()[0]
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        raise DownloadError(f"could not download {address}: {problem}", hint=hint) from None


def _parsed(address: str) -> tuple[str, str]:
    parts = address.removeprefix(PREFIX).split("/", 2)
    if not address.startswith(PREFIX) or len(parts) < 3 or not all(parts):
        raise UsageError(f"{address} is not the address of a file", hint=f"expected {PREFIX}OWNER/NAME/FILE")
    return f"{parts[0]}/{parts[1]}", parts[2]


def _bar(report: Report) -> type[tqdm]:
    """A progress bar class for the Hub's client, which calls ``report`` and draws nothing."""
    from huggingface_hub.utils import tqdm as base

    class Bar(base):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._bytes, self._all = int(options.get("initial") or 0), options.get("total")
            super().__init__(disable=True)

        def update(self, n: float | None = 1) -> None:
            self._bytes += int(n or 0)
            report(self._bytes, self._all)

    return Bar
