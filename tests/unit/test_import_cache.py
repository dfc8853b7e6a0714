"""What transformers finds out about its files is kept, and is what it would find out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qlora_engine.training.import_cache import FUNCTION, Structure, use_kept

COMPARE = """
import sys
from pathlib import Path
import transformers.utils.import_utils as reader  # before anything of ours
plain = reader.create_import_structure_from_path
models = Path(reader.__file__).parents[1] / "models"
found, of_auto = plain(models), plain(models / "auto" / "__init__.py")
from qlora_engine.training.import_cache import use_kept
cache = Path(sys.argv[1])
for time in ("kept", "read"):
    reader.create_import_structure_from_path = plain
    use_kept(reader, cache)
    assert reader.create_import_structure_from_path is not plain
    assert reader.create_import_structure_from_path(models) == found, time
    assert reader.create_import_structure_from_path(str(models / "auto" / "__init__.py")) == of_auto, time
(file,) = cache.iterdir()
assert file.stat().st_size > 10_000 and len(found) > 100
"""


def test_it_is_what_the_installed_transformers_finds(tmp_path: Path) -> None:
    """Or a tokenizer would be missing, or be imported from the wrong module."""
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


class Reader(ModuleType):
    """Stands for the module that reads sources, and counts how often it does."""

    def __init__(self, place: Path) -> None:
        super().__init__("reader")
        self.__file__ = str(place / "utils" / "import_utils.py")
        (place / "utils").mkdir(exist_ok=True)
        Path(self.__file__).touch()
        self.read: list[str] = []
        setattr(self, FUNCTION, self.find)

    def find(self, path: Any) -> Structure:
        """As transformers answers: a folder in the folder, sets of backends, names by module."""
        self.read.append(Path(path).name)
        return {"auto": {frozenset(): {"auto": {"A"}}}, frozenset({"torch"}): {"m": {"B", "C"}}}

    def ask(self, path: Path) -> Structure:
        """What an importer would be told."""
        return getattr(self, FUNCTION)(path)  # type: ignore[no-any-return]


def test_sources_are_read_once_until_they_are_installed_anew(tmp_path: Path) -> None:
    """Else nothing is gained, or an upgrade is never noticed."""
    first, second = Reader(tmp_path), Reader(tmp_path)
    use_kept(first, tmp_path / "cache")
    use_kept(second, tmp_path / "cache")
    assert first.read == ["models"]
    assert second.read == []
    assert second.ask(tmp_path / "models") == second.find("")
    assert second.ask(tmp_path / "models" / "auto" / "__init__.py") == {frozenset(): {"auto": {"A"}}}

    third = Reader(tmp_path)
    assert third.__file__ is not None
    Path(third.__file__).write_text("# newer")
    use_kept(third, tmp_path / "cache")
    assert third.read == ["models"]


def kept_file(place: Path) -> Path:
    """What was kept."""
    use_kept(Reader(place), place / "cache")
    (file,) = (place / "cache").iterdir()
    return file


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"about": 1}', b"\xff"])
def test_what_was_kept_and_is_damaged_is_found_out_again(tmp_path: Path, content: bytes) -> None:
    """A power cut while the file is written must not keep every job from starting."""
    kept_file(tmp_path).write_bytes(content)
    reader = Reader(tmp_path)
    use_kept(reader, tmp_path / "cache")
    assert reader.ask(tmp_path / "models") == reader.find("")


@pytest.mark.parametrize("structure", [3, [], [1], [["auto", 3]], [[["torch"], []]]])
def test_a_structure_that_cannot_be_one_is_found_out_again(tmp_path: Path, structure: object) -> None:
    """The same, where the file is whole and its content is not."""
    file, reader = kept_file(tmp_path), Reader(tmp_path)
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"structure": structure}))
    use_kept(reader, tmp_path / "cache")
    assert reader.ask(tmp_path / "models") == reader.find("")


def test_another_folder_is_read_as_ever(tmp_path: Path) -> None:
    """A model's own code lies elsewhere, or was added since."""
    reader = Reader(tmp_path)
    use_kept(reader, tmp_path / "cache")
    reader.ask(tmp_path / "elsewhere")
    reader.ask(tmp_path / "models" / "new")
    assert reader.read == ["models", "elsewhere", "new"]


def test_where_nothing_can_be_kept_it_is_found_out_every_time(tmp_path: Path) -> None:
    """A home directory that cannot be written, or a file in the way, must not keep training from its start."""
    (tmp_path / "file").touch()
    reader = Reader(tmp_path)
    use_kept(reader, tmp_path / "file" / "cache")
    assert reader.ask(tmp_path / "models") == reader.find("")


def test_a_transformers_that_works_in_another_way_is_left_alone(tmp_path: Path) -> None:
    """It may do without that function one day."""
    reader = ModuleType("reader")
    reader.__file__ = str(tmp_path / "utils" / "import_utils.py")
    use_kept(reader, tmp_path / "cache")
    assert not hasattr(reader, FUNCTION)
