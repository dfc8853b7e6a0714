"""The documentation: its reference is that of the code, its links lead somewhere, examples that do not run say why."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_engine.job.folder import RunFolder
from support.examples import OTHER, examples_in, pages
from support.service import ROOT

PATHS = os.pathsep.join(str(ROOT / part) for part in ("tools", "daemon", "worker", "clients", "."))
TEST = re.compile(r"`(?P<file>test_\w+\.py)::(?P<name>test_\w+)`")
# Pages name others in comments of examples, in errors and in docstrings: docs/install.md.
NAMED = re.compile(r"(?<![\w/])docs/[\w./-]+\.md")


def test_the_reference_is_that_of_the_code() -> None:
    """A key, a setting or a command that it does not know is one that nobody finds. `make docs` writes it."""
    done = subprocess.run(
        [sys.executable, "-m", "reference", "--check"],
        env={**os.environ, "PYTHONPATH": PATHS, "NO_COLOR": "1", "COLUMNS": "70"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_page_can_be_reached_from_the_front_page(site: Path) -> None:
    """A page that nothing leads to is not read; one line of mkdocs.yml does. A link to nowhere ends the build."""
    front = (site / "index.html").read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.relative_to(ROOT / "docs").with_suffix(".html").as_posix().replace("README", "index")
        assert f'href="{page}"' in front, f"{page} is not in the navigation of mkdocs.yml"


def test_the_site_asks_no_server_for_anything(site: Path) -> None:
    """It is read without a network, too; and who reads it is nobody else's business."""
    asks = re.compile(r"""(?:src|srcset)\s*=\s*["']?https?:|<link[^>]*href="https?:|@import|url\(["']?https?:""")
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        found = asks.search(page.read_text(encoding="utf-8"))
        assert found is None, f"{page.relative_to(site)}: {found and found[0]}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_says_what_it_is_and_why_it_is_not_run(page: Path) -> None:
    """The tests run what a person can run; what they do not run must be said, so that the list stays short."""
    for example in examples_in(page):
        assert example.is_code or example.language in OTHER, f"{example.place}: {example.language!r}"
        if example.not_run is not None:
            assert len(example.not_run) > 8, f"{example.place}: why is it not run?"
            sys.stdout.write(f"not run: {example.place}: {example.not_run}\n")


def test_every_test_that_a_page_names_is_there() -> None:
    """A proof that does not exist proves nothing."""
    named = 0
    for page in pages():
        for found in TEST.finditer(page.read_text(encoding="utf-8")):
            texts = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob(found["file"])]
            assert any(f"def {found['name']}(" in text for text in texts), f"{page.name}: {found[0]}"
            named += 1
    assert named > 20


def test_every_page_that_the_source_names_is_there() -> None:
    """An error that sends a person to a page that has moved sends him away."""
    for folder in ("daemon", "worker", "clients", "qlora_engine", "packaging", "tools", "benchmarks"):
        for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.rb")]:
            for name in NAMED.findall(path.read_text(encoding="utf-8")):
                assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}"
    for page in pages():
        for name in NAMED.findall(page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page.relative_to(ROOT)} names {name}"


def test_the_page_of_the_run_folder_names_all_that_lies_there() -> None:
    """Whoever reads run folders by a program relies on the page."""
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    run = RunFolder(Path("run"))
    places = {name: getattr(run, name) for name, kind in vars(RunFolder).items() if isinstance(kind, property)}
    for name, place in places.items():
        assert name == "id" or place.name in text, f"{name}: {place.name}"
