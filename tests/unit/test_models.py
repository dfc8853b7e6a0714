"""Names and places of models, and that a model is there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qlora_engine.job.errors import BadSetting, Exit, ModelNotAdded, ModelNotPermitted
from qlora_engine.job.model_store import adding, check_space, publish
from qlora_engine.job.models import CATALOGUE, NAME, check_name, describe, installed, models_dir, resolve


def model(folder: Path, **config: object) -> Path:
    """A folder that looks like a model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (folder / "model.safetensors").write_bytes(bytes(100))
    return folder


def test_the_catalogue_pins_what_it_downloads() -> None:
    """A model that is known by name must always be the same bytes, with a licence that allows it."""
    for name, known in CATALOGUE.items():
        assert name == known.name
        assert NAME.fullmatch(name)
        assert len(bytes.fromhex(known.wheel_sha256)) == 32
        assert known.licence == "Apache-2.0"
        assert known.member.endswith(".gguf")


@pytest.mark.parametrize("name", ["", ".", "..", ".lock", "a/b", "../x", "-x", "a b", "a\n", "ü", "x" * 65, "a\0"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    """A name becomes a folder: it must not reach any other place."""
    with pytest.raises(BadSetting):
        check_name(name)
    with pytest.raises(BadSetting), adding(tmp_path, name):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_name_means_the_installed_model_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job says `model: smollm2` wherever it is submitted from."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    (tmp_path / "mine").mkdir()
    assert resolve("mine", home) == Path("mine")
    added = model(models_dir(home) / "mine")
    assert resolve("mine", home) == added
    assert resolve(str(tmp_path / "mine"), home) == tmp_path / "mine"


@pytest.mark.parametrize("name", ["", "none", "someone/model", "a\0b", "~nobody-here/x", "x" * 5000])
def test_other_names_resolve_to_nothing(tmp_path: Path, name: str) -> None:
    """What is no local model may be a hub's; the caller decides."""
    assert resolve(name, tmp_path) is None


def test_the_list_shows_models_and_their_problems(tmp_path: Path) -> None:
    """`qlora models ls` must not fail on a folder that somebody broke."""
    assert installed(tmp_path) == []
    folder = models_dir(tmp_path)
    model(folder / "b", num_hidden_layers=30, hidden_size=576, quantization={"bits": 4})
    model(folder / "a", num_hidden_layers="many")
    (folder / "c").mkdir()
    model(folder / ".adding-d")
    (folder / "e").mkdir()
    (folder / "e" / "config.json").write_text("[1")
    (folder / "f").touch()
    found = installed(tmp_path)
    assert [info.name for info in found] == ["a", "b", "c", "e"]
    assert (found[1].architecture, found[1].layers, found[1].hidden, found[1].bits) == ("llama", 30, 576, 4)
    assert found[1].size > 100
    assert [info.problem is None for info in found] == [True, True, False, False]
    assert found[0].layers is None
    assert describe(folder / "b") == found[1]


def test_what_a_crash_left_is_tidied_away(tmp_path: Path) -> None:
    """A killed download must not keep its disk space for ever."""
    folder = models_dir(tmp_path)
    model(folder / ".adding-big" / "model")
    with adding(tmp_path, "next") as work:
        assert [entry.name for entry in folder.glob(".adding-*")] == [work.name]
    assert not list(folder.glob(".adding-*"))


def test_a_replacement_cut_short_gives_the_old_model_back(tmp_path: Path) -> None:
    """Between its two renames a replacement has neither model in place; the next command mends that."""
    folder = models_dir(tmp_path)
    model(folder / ".old-mine", hidden_size=1)
    with pytest.raises(ModelNotAdded, match="exists"), adding(tmp_path, "mine"):
        pass
    assert describe(folder / "mine").hidden == 1


def test_a_replacement_takes_the_place_of_the_old_model(tmp_path: Path) -> None:
    """The new model must be the only one under its name."""
    model(models_dir(tmp_path) / "mine", hidden_size=1)
    with adding(tmp_path, "mine", replace=True) as work:
        made = model(work / "model", hidden_size=2)
        assert describe(models_dir(tmp_path) / "mine").hidden == 1
        assert describe(publish(made, tmp_path, "mine", replace=True)).hidden == 2
    assert [info.name for info in installed(tmp_path)] == ["mine"]
    assert not list(models_dir(tmp_path).glob(".old-*"))


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    """A download of minutes must not end in a full disk that was foreseeable."""
    check_space(tmp_path, 1)
    with pytest.raises(ModelNotAdded, match="MB free"):
        check_space(tmp_path, 10**18)


def test_a_home_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """A wrong QLORAD_HOME must name the folder, not raise a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotAdded, match="cannot be written"), adding(tmp_path / "file", "mine"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_of_somebody_else_is_a_clear_error(tmp_path: Path) -> None:
    """Without permission the remedy is another one than for a full disk."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ModelNotPermitted) as failure, adding(tmp_path, "mine"):
            pass
    finally:
        tmp_path.chmod(0o700)
    assert failure.value.exit_code == Exit.NOPERM
