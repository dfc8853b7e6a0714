"""What is installed holds all that the source runs with. That it works when installed: `make wheel-test`."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from qlora_engine import __version__

ROOT = Path(__file__).parents[2]
COMPONENTS = ("daemon/qlora_daemon", "worker/qlora_worker", "clients/qlora_client", "qlora_engine")


def build(source: Path, target: str, into: Path) -> Path:
    """Build a wheel or a source distribution, without a network."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(into)],
        cwd=source, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (built,) = into.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_file_of_the_four_packages_is_in_the_wheel_and_nothing_else(wheel: Path) -> None:
    """A template or a marker that is left out is missing at the user's alone."""
    parts = [ROOT / part for part in COMPONENTS]
    files = {
        str(path.relative_to(part.parent)) for part in parts for path in part.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts
    }  # fmt: skip
    examples = {
        f"qlora_client/examples/{path.relative_to(ROOT / 'examples')}" for path in (ROOT / "examples").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip
    packed = {name for name in names(wheel) if ".dist-info/" not in name}
    assert packed == files | examples
    assert "qlora_engine/report/page.html.j2" in packed
    assert {f"{Path(part).name}/py.typed" for part in COMPONENTS} <= packed


def test_the_wheel_says_its_version_its_commands_and_its_licence(wheel: Path) -> None:
    """`pip show` and `qlora --version` must not disagree, and uv and pipx look for the commands here."""
    with zipfile.ZipFile(wheel) as archive:
        about = f"qlorad-{__version__}.dist-info"
        metadata = archive.read(f"{about}/METADATA").decode()
        commands = archive.read(f"{about}/entry_points.txt").decode()
        assert archive.read(f"{about}/licenses/LICENSE")
    assert f"Version: {__version__}\n" in metadata
    assert "Requires-Dist: pip" in metadata  # uv installs none of its own accord, and `qlora models add` asks it
    assert "qlora = qlora_client.entry:main" in commands
    assert "qlorad = qlora_daemon.entry:main" in commands


def test_the_unpacked_wheel_runs_far_from_the_source(wheel: Path, tmp_path: Path) -> None:
    """Not by luck of a folder beside it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")  # noqa: S202  # built above
    script = (
        "import qlora_engine, qlora_client.examples as e, qlora_client.cli, qlora_daemon.cli;"
        "print(qlora_engine.__file__, qlora_engine.__version__, e.find_example('sql-assistant'), sep='\\n');"
        "raise SystemExit(qlora_client.cli.main(['ls']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "QLORAD_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    where, version, example = done.stdout.splitlines()[:3]
    assert Path(where).is_relative_to(tmp_path / "site")
    assert version == __version__
    assert Path(example).is_relative_to(tmp_path / "site")


def test_the_formula_names_what_it_installs_and_nothing_is_left_to_fill_in(tmp_path: Path) -> None:
    """Homebrew refuses another checksum, and reads the version out of the address."""
    sdist = build(ROOT, "sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "constraints.txt", "LICENSE", "README.md"} <= held
    make = [sys.executable, str(ROOT / "packaging" / "formula.py"), str(sdist)]
    done = subprocess.run([*make, f"https://example.org/{sdist.name}"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("class Qlorad < Formula\n")
    assert hashlib.sha256(sdist.read_bytes()).hexdigest() in done.stdout
    assert f"qlorad-{__version__}.tar.gz" in done.stdout
    assert "@" not in done.stdout.replace("python@3.13", "").replace('"$@"', "")
    wrong = subprocess.run([*make, "https://example.org/other.tar.gz"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 65
    assert "should begin with https:// and end with" in wrong.stderr


def test_a_wheel_from_the_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    """Homebrew builds from that one."""
    source = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (unpacked,) = (tmp_path / "source").iterdir()
    assert names(build(unpacked, "wheel", tmp_path / "wheel")) == names(wheel)
