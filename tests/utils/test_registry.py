"""Parts by name: built-in ones, those of plug-in files and those of installed packages, and their versions."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.errors import PluginError, UsageError
from memskill_cli.utils import registry
from memskill_cli.utils.registry import Registry, files_of, load_plugin, load_plugins, loaded_plugins, plugin_frame

GROUP = "memskill.tests-of-registries"


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_loaded", {})
    registry._entry_points.cache_clear()
    modules = set(sys.modules)
    yield
    registry._entry_points.cache_clear()
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    """A registry that plug-in files of these tests know as ``tests_parts.PARTS``."""
    made: Registry[object] = Registry("part", GROUP, {"pi": "math:pi"})
    module = type(sys)("tests_parts")
    module.PARTS = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_parts", module)
    return made


def plugin(folder: Path, name: str = "mine", more: str = "") -> Path:
    file = folder / f"{name}.py"
    file.write_text(f"from tests_parts import PARTS\nVALUE = PARTS.register({name!r}, [{name!r}])\n{more}")
    return file


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, version: str = "1.2") -> None:
    """An installed package with the part ``theirs``."""
    info = folder / f"theirs-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: theirs\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\ntheirs = theirs_module:PART\n")
    (folder / "theirs_module.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))


def test_a_part_is_found_by_its_name_and_an_unknown_one_names_the_nearest(parts: Registry[object]) -> None:
    parts.register("minimum", min)
    assert parts.get("minimum") is min
    assert parts.get("pi") == pytest.approx(3.14159, abs=1e-4)
    assert parts.names() == ["pi", "minimum"]
    for ask in (parts.get, parts.check, parts.origin, parts.identity):
        with pytest.raises(UsageError, match=r"no part is called minimun; there are pi, minimum") as caught:
            ask("minimun")
        assert caught.value.hint == "did you mean minimum?"
    with pytest.raises(UsageError, match=r"^train\.part: no part is called x"):
        parts.check("x", "train.part")


def test_a_name_is_taken_once(parts: Registry[object]) -> None:
    parts.register("a", min)
    parts.register("a", min)  # a module that is run twice
    for name in ("a", "pi"):
        with pytest.raises(PluginError, match=f"already a part called {name}"):
            parts.register(name, max)


def test_a_plugin_file_is_run_once_and_said_once(parts: Registry[object], tmp_path: Path) -> None:
    said: list[str] = []
    file = plugin(tmp_path, more="PARTS.named('second')(len)\n")
    load_plugins([file], said.append)
    load_plugins([file, file], said.append)
    assert said == ["plug-in mine.py is loaded: part mine, part second"]
    assert [item.name for item in loaded_plugins()] == ["mine.py"]
    assert parts.get("mine") == ["mine"]
    assert parts.get("second") is len


def test_a_part_of_a_file_is_known_by_the_sha256_of_the_file(parts: Registry[object], tmp_path: Path) -> None:
    file = plugin(tmp_path)
    load_plugin(file)
    assert parts.identity("mine") == hashlib.sha256(file.read_bytes()).hexdigest() == loaded_plugins()[0].sha256
    assert (parts.identity("pi"), parts.origin("pi"), parts.origin("mine")) == ("", "memskill", "plug-in")


def test_what_is_registered_without_a_file_never_has_the_same_identity(parts: Registry[object]) -> None:
    parts.register("first", 3.5)
    here = parts.register("here", test_a_name_is_taken_once)
    assert callable(here)
    assert parts.identity("here") == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    before = parts.identity("first")
    parts.unregister("first")
    parts.register("first", 3.5)
    assert len(before) == len(parts.identity("first")) > 20
    assert before != parts.identity("first")


def test_a_class_of_a_plugin_can_be_sent_to_a_process_that_has_loaded_it(
    parts: Registry[object], tmp_path: Path
) -> None:
    """The module's name follows from the path, and not from a hash that differs in every process."""
    load_plugin(plugin(tmp_path))
    digest = hashlib.sha256(str(tmp_path / "mine.py").encode()).hexdigest()[:12]
    assert f"memskill_plugin_mine_{digest}" in sys.modules


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such file"), ("1 / 0", "ZeroDivisionError: division by zero"), ("def", "SyntaxError")],
)
def test_a_file_that_cannot_be_run_is_named(
    parts: Registry[object], tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(PluginError, match=message) as caught:
        load_plugin(file)
    assert str(file) in caught.value.message
    assert "\n" not in caught.value.message
    assert loaded_plugins() == ()


def test_a_file_that_takes_a_name_is_told_what_to_do(parts: Registry[object], tmp_path: Path) -> None:
    parts.register("mine", min)
    with pytest.raises(PluginError, match=r"mine\.py: there is already a part called mine$") as caught:
        load_plugin(plugin(tmp_path))
    assert caught.value.hint == "use another name in the plug-in"


def test_a_file_that_failed_can_be_loaded_once_it_is_corrected(parts: Registry[object], tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="division by zero"):
        load_plugin(plugin(tmp_path, more="1 / 0"))
    assert parts.names() == ["pi"]
    load_plugin(plugin(tmp_path))
    assert parts.names() == ["pi", "mine"]


def test_an_installed_package_is_known_by_name_and_version(
    parts: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from tests_parts import PARTS\nPART = PARTS.register('theirs', ['theirs'])\n"
    package(tmp_path, monkeypatch, text)
    assert "theirs_module" not in sys.modules
    assert parts.names() == ["pi", "theirs"]
    before = parts.identity("theirs")
    assert "theirs_module" not in sys.modules, "asking for a version runs nothing"
    assert parts.get("theirs") == ["theirs"]
    assert parts.identity("theirs") == before == "theirs 1.2", "a decorator in the module changes nothing"


def test_a_package_that_cannot_be_loaded_is_named(
    parts: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, "import nothing_of_the_kind")
    parts.check("theirs")
    with pytest.raises(PluginError, match=r"part theirs \(theirs_module:PART\) cannot be loaded: ModuleNotFound"):
        parts.get("theirs")


def test_a_part_of_ours_or_of_a_file_counts_before_one_of_a_package(
    parts: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, "PART = 1")
    load_plugin(plugin(tmp_path, "theirs"))
    assert (parts.get("theirs"), parts.origin("theirs")) == (["theirs"], "plug-in")
    ours: Registry[object] = Registry("part", GROUP, {"theirs": "math:pi"})
    assert (ours.get("theirs"), ours.origin("theirs")) == (math.pi, "memskill")
    assert (parts.names(), ours.names()) == (["pi", "theirs"], ["theirs"])
    assert "theirs_module" not in sys.modules


def test_a_hint_where_no_name_is_near(parts: Registry[object]) -> None:
    for name, hint in (("PI", "did you mean pi?"), ("xyz", "--plugin FILE.py")):
        with pytest.raises(UsageError) as caught:
            parts.get(name)
        assert hint in caught.value.hint


def test_names_of_built_in_parts_import_nothing() -> None:
    broken: Registry[object] = Registry("part", GROUP, {"broken": "nothing_of_the_kind:x"})
    broken.check("broken")
    assert broken.names() == ["broken"]
    with pytest.raises(ModuleNotFoundError, match="nothing_of_the_kind"):
        broken.get("broken")


def test_a_file_is_the_same_however_it_is_named(
    parts: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file of the same name is another plug-in."""
    told = tmp_path / "told.txt"
    more = f"with open({str(told)!r}, 'a') as file: file.write('x')\n"
    file = plugin(tmp_path, more=more)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (file, Path("mine.py"), Path("~/mine.py"), tmp_path / "." / "mine.py"):
        load_plugin(name)
    assert told.read_text() == "x"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text(more)
    load_plugin(tmp_path / "other" / "mine.py")
    assert told.read_text() == "xx"


def test_a_file_that_raised_is_run_again_when_it_is_repaired(parts: Registry[object], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("1 / 0")
    modules = set(sys.modules)
    with pytest.raises(PluginError):
        load_plugin(file)
    assert set(sys.modules) == modules
    file.write_text("from tests_parts import PARTS\nPARTS.register('repaired', 1)\n")
    load_plugin(file)
    assert parts.get("repaired") == 1


@pytest.mark.parametrize(("name", "message"), [("folder.py", "no such file"), ("mine.txt", "not a Python file")])
def test_what_is_no_python_file(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "mine.txt").write_text("x = 1")
    with pytest.raises(PluginError, match=message) as caught:
        load_plugin(tmp_path / name)
    assert ".py" in caught.value.hint


def test_a_file_may_define_dataclasses(tmp_path: Path) -> None:
    """They look their module up while it runs."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
    )
    assert load_plugin(file).parts == ()


def test_an_exception_is_traced_to_the_plugin_it_passed_through(parts: Registry[object], tmp_path: Path) -> None:
    file = plugin(
        tmp_path, more="def read(path):\n    return path.split()\n\ndef outer(path):\n    return read(path)\n"
    )
    load_plugin(file)
    module = next(module for name, module in sys.modules.items() if name.startswith("memskill_plugin_mine"))
    with pytest.raises(AttributeError) as error:
        module.outer(3)
    assert plugin_frame(error.value) == f"read ({file}:4)", "the innermost function"
    with pytest.raises(ZeroDivisionError) as own:
        _ = 1 / len(())
    assert plugin_frame(own.value) == ""


def test_an_exception_in_an_installed_package_is_traced_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, "def PART():\n    raise KeyError('x')\n")
    part: Any = Registry[object]("part", GROUP, {}).get("theirs")
    with pytest.raises(KeyError) as error:
        part()
    assert plugin_frame(error.value).startswith("PART (")


def test_the_file_of_a_part_is_known_relative_to_the_current_folder(
    parts: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_plugin(plugin(tmp_path))
    assert files_of("part mine") == [(tmp_path / "mine.py").resolve()]
    monkeypatch.chdir(tmp_path)
    assert files_of("part mine") == [Path("mine.py")]
    assert files_of("part pi") == []
