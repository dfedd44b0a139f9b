"""What is released: its bounds include what was tested; built and installed where nothing else is, it works.

The clean environments get the torch of constraints.txt first, as make does it: any other release may bring CUDA, which
is gigabytes and not what is tested here. Nothing else is held by constraints.txt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .conftest import tiny

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    if version
}
OLD_PIP = "23.2.1"
"""The pip that Python 3.11 brings."""
MINUTES = pytest.mark.timeout(900)


def parsed(lines: list[str]) -> list[Requirement]:
    """The requirements of ``lines`` that are not extras of this project."""
    requirements = map(Requirement, lines)
    return [requirement for requirement in requirements if canonicalize_name(requirement.name) != PROJECT["name"]]


DEPENDENCIES = parsed(PROJECT["dependencies"])
OPTIONAL = parsed([line for lines in PROJECT["optional-dependencies"].values() for line in lines])


@pytest.mark.parametrize("requirement", [*DEPENDENCIES, *OPTIONAL], ids=str)
def test_bounds_include_the_version_that_the_tests_run_with(requirement: Requirement):
    name = canonicalize_name(requirement.name)
    assert name in PINS, "constraints.txt names no version of it"
    assert requirement.specifier.contains(PINS[name], prereleases=True)


@pytest.mark.parametrize("requirement", DEPENDENCIES, ids=str)
def test_every_dependency_has_a_lower_and_an_upper_bound(requirement: Requirement):
    assert {bound.operator for bound in requirement.specifier} == {">=", "<"}


def environ() -> dict[str, str]:
    """This environment without what leads to this checkout; uv, which reads none of pip's settings, is told of them."""
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "PIP_CONSTRAINT", "PYTHONHOME")
    kept = {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith(("MEMSKILL_", "UV_"))}
    for theirs, ours in (("UV_FIND_LINKS", "PIP_FIND_LINKS"), ("UV_DEFAULT_INDEX", "PIP_INDEX_URL")):
        if ours in kept:
            kept[theirs] = kept[ours]
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    """What the command prints; a test fails with its last lines if the command does."""
    texts = [str(word) for word in command]
    done = subprocess.run(texts, cwd=cwd, env={**environ(), **more}, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, f"{' '.join(texts)}\n{(done.stdout + done.stderr)[-3000:]}"
    return done.stdout


@dataclass(frozen=True)
class Clean:
    """A virtual environment, and a folder elsewhere to type commands in."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    def pip(self, *arguments: str | Path) -> str:
        return run(self.bin / "python", "-m", "pip", *arguments, cwd=self.folder)

    def use(self) -> None:
        """Prepare the sample, train, evaluate, against the scripted server that is part of the wheel."""
        away = self.folder / "away"
        away.mkdir()
        where = run(self.bin / "python", "-c", "import memskill_cli; print(memskill_cli.__file__)", cwd=away)
        assert Path(where.strip()).is_relative_to(self.folder)
        server = subprocess.Popen(
            [self.bin / "python", "-m", "memskill_cli.testing.server"],
            cwd=away,
            env=environ(),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            flags = [*tiny(server.stdout.readline().strip()), "--api-key", "none", "--run", "r"]
            memskill, cache = self.bin / "memskill", {"MEMSKILL_CACHE_DIR": str(away / "cache")}
            run(memskill, "prepare", "--dataset", "locomo", "--sample", cwd=away, **cache)
            (away / "short.toml").write_text("[train]\nouter_epochs = 1\ninner_epochs = 1\nbatch_size = 1\n")
            run(memskill, "train", *flags, "--config", "short.toml", "--no-evolve", cwd=away, **cache)
            run(memskill, "eval", *flags, "--limit", "2", cwd=away, **cache)
        finally:
            server.terminate()
            server.wait()
            if server.stdout is not None:
                server.stdout.close()
        assert list((away / "runs" / "r" / "checkpoints").iterdir())
        assert list((away / "runs" / "r" / "evals").glob("*/summary.json"))


@pytest.fixture
def clean() -> Iterator[Clean]:
    """Some gigabytes, so not left behind as pytest's own folders are."""
    with tempfile.TemporaryDirectory(prefix="memskill-clean-") as name:
        folder = Path(name).resolve()
        venv.create(folder / "venv", with_pip=True)
        yield Clean(folder)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where no package index can be reached."""
    folder = tmp_path_factory.mktemp("index")
    pip = [sys.executable, "-m", "pip", "--retries", "1", "--timeout", "20"]
    download = [*pip, "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", str(folder), f"pip=={OLD_PIP}"]
    done = subprocess.run(download, env=environ(), capture_output=True, text=True, timeout=250)
    if done.returncode:
        pytest.skip(f"no package index can be reached: {done.stderr.strip()[-200:]}")


@pytest.fixture(scope="module")
def dist(index: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and an sdist, built as ``make release`` builds them."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (file,) = dist.glob("*.whl")
    return file


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "check_release.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
@MINUTES
def test_a_release_contains_what_it_should(dist: Path):
    done = checked(dist)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@MINUTES
@pytest.mark.parametrize(
    "name",
    [
        "memskill_cli/py.typed",
        "memskill_cli/_data/samples/locomo_sample.json",
        "memskill_cli/_data/longmemeval_s_splits.json",
        "memskill_cli/agent/prompts/judge.md",
        "memskill_cli/errors.py",
    ],
)
def test_a_release_without_a_file_is_refused(dist: Path, wheel: Path, tmp_path: Path, name: str):
    shutil.copytree(dist, tmp_path, dirs_exist_ok=True)
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(tmp_path / wheel.name, "w") as broken:
        for entry in whole.namelist():
            if entry != name:
                broken.writestr(entry, whole.read(entry))
    done = checked(tmp_path)
    assert done.returncode == 1
    assert f"{wheel.name}: missing: {name}" in done.stderr


@pytest.mark.slow
@MINUTES
def test_a_release_with_a_file_too_many_is_refused(dist: Path, wheel: Path, tmp_path: Path):
    shutil.copytree(dist, tmp_path, dirs_exist_ok=True)
    with zipfile.ZipFile(tmp_path / wheel.name, "a") as more:
        more.writestr("tests/conftest.py", "")
    done = checked(tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"{wheel.name}: does not belong there: tests/conftest.py"]


@pytest.mark.slow
@MINUTES
def test_pip_installs_it_and_it_works(wheel: Path, clean: Clean):
    """The newest pip only says what it would install; the old one, whose resolver is weaker, installs it."""
    clean.pip("install", "--quiet", f"torch=={PINS['torch']}")
    clean.pip("install", "--quiet", "--upgrade", "pip")
    assert "Would install" in clean.pip("install", "--dry-run", wheel)
    clean.pip("install", "--quiet", f"pip=={OLD_PIP}")
    clean.pip("install", "--quiet", wheel)
    clean.pip("check")
    clean.use()


@pytest.mark.slow
@MINUTES
@pytest.mark.parametrize("resolution", ["highest", "lowest-direct"])
def test_uv_installs_it_and_it_works(wheel: Path, clean: Clean, resolution: str):
    """The newest of everything, and the oldest that the bounds of pyproject.toml let in."""
    clean.pip("install", "--quiet", "uv")
    uv = [clean.bin / "uv", "pip", "--quiet", "--cache-dir", clean.folder / "cache"]
    python = ["--python", clean.bin / "python"]
    torch = f"torch=={PINS['torch']}"
    requirements = [wheel] if resolution == "highest" else ["-r", ROOT / "pyproject.toml"]
    run(*uv, "install", *python, "--resolution", resolution, torch, *requirements, cwd=clean.folder)
    run(*uv, "install", *python, "--no-deps", wheel, cwd=clean.folder)
    run(*uv, "check", *python, cwd=clean.folder)
    clean.use()
