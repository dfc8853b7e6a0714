"""Programs of the system: run without a shell, with a limit of time."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_engine.host.program import run
from qlora_engine.job.errors import ProgramFailed


def test_a_program_says_how_it_ended() -> None:
    """A launchctl that failed must not be taken for one that did not."""
    finished = run(["sh", "-c", "cat; echo no >&2; exit 5"], timeout=10, stdin="yes")
    assert (finished.code, finished.out, finished.err, finished.said) == (5, "yes", "no\n", "no")


def test_a_program_that_hangs_is_ended() -> None:
    """A folder that macOS guards can keep a program waiting for ever."""
    with pytest.raises(ProgramFailed, match=r"did not end within 0\.2 s"):
        run(["sleep", "60"], timeout=0.2)


@pytest.mark.parametrize("name", ["no-such-program-here", "a-folder"])
def test_a_program_that_cannot_run_is_one_clear_error(tmp_path: Path, name: str) -> None:
    """A Linux machine has no pmset, and says so."""
    (tmp_path / "a-folder").mkdir()
    with pytest.raises(ProgramFailed, match=r"There is no program|cannot be started"):
        run([name if name.startswith("no-") else str(tmp_path / name)], timeout=10)


def test_what_is_no_text_is_replaced() -> None:
    """Names of devices may hold anything."""
    assert run(["printf", r"\377"], timeout=10).out == "\N{REPLACEMENT CHARACTER}"
