"""Every shell and Python example in README and docs/ runs, on one machine with a real daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.example_world import World, world
from support.examples import pages, to_run
from support.service import ROOT


@pytest.fixture(scope="module")
def machine() -> Iterator[World]:
    with world() as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [pytest.param(path, id=str(path.relative_to(ROOT))) for path in pages() if to_run(path)],
)
def test_the_examples_of_a_page_run_as_they_stand(machine: World, page: Path) -> None:
    """Whoever copies a line into a terminal must get what the page says, and no error."""
    with machine.page() as place:
        for example in to_run(page):
            place.run(example)
