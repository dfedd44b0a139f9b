"""Download files of Hugging Face datasets, and exchange bundles, with ``huggingface_hub``.

Its mirrors (HF_ENDPOINT), tokens and cache are used. For a file of a dataset, one request first checks whether the Hub
can be reached, because its client would retry for 23 seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memskill_cli.errors import DownloadError, UsageError
from memskill_cli.utils.download import Report

if TYPE_CHECKING:
    from huggingface_hub.utils import tqdm

PREFIX = "hf://datasets/"
HUB = "hf://"
"""Begins the address of a bundle: ``hf://owner/name``, a model repository."""


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


def pull_repository(address: str, patterns: Sequence[str]) -> Path:
    """Download the files of ``hf://owner/name`` that match ``patterns``; return the folder in the Hub's cache.

    Raises UsageError for an address of another form, DownloadError if the repository cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors(f"could not download {address}"):
        return Path(snapshot_download(_repository(address), allow_patterns=list(patterns)))


def push_folder(folder: Path, address: str, patterns: Sequence[str]) -> str:
    """Upload the files of ``folder`` that match ``patterns`` to ``hf://owner/name``. Returns the web address.

    A repository that does not exist is made, as a private one. Raises UsageError for an address of another form,
    DownloadError if the Hub refuses it.
    """
    from huggingface_hub import HfApi

    repository, api = _repository(address), HfApi()
    with _hub_errors(f"could not upload to {address}", hint="log in: huggingface-cli login, or set HF_TOKEN"):
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(patterns), commit_message="memskill push"
        )
    return f"{api.endpoint}/{repository}"


def _repository(address: str) -> str:
    name = address.removeprefix(HUB)
    if not address.startswith(HUB) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UsageError(f"{address} is not the address of a bundle", hint=f"expected {HUB}OWNER/NAME")
    return name


@contextmanager
def _hub_errors(what: str, hint: str = "") -> Iterator[None]:
    """Turns errors of the Hub and of the network into a DownloadError with one line of text."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HfHubHTTPError as error:
        answer = error.response
        raise DownloadError(
            f"{what}: the Hub answered {answer.status_code} {answer.reason_phrase}".rstrip(), hint=hint
        ) from None
    except (httpx.TransportError, HFValidationError, OSError) as error:
        raise DownloadError(f"{what}: {(str(error) or type(error).__name__).splitlines()[0]}", hint=hint) from None
