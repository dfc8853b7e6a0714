"""The pictures of the terminal in the documentation."""

from __future__ import annotations

import os
import subprocess
import sys

from support.service import ROOT


def test_the_pictures_show_what_the_commands_print() -> None:
    """A picture of last year's screen is worse than none. They are drawn anew by `make screens`."""
    path = os.pathsep.join(str(ROOT / part) for part in ("tools", "clients", "worker", "."))
    done = subprocess.run(
        [sys.executable, "-m", "screens", "--check"],
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "", "COLUMNS": "70"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_pictures_ask_no_server_for_anything() -> None:
    """The documentation is read without a network, too."""
    pictures = list((ROOT / "docs" / "screens").glob("*.svg"))
    assert len(pictures) == 10
    for picture in pictures:
        assert "://" not in picture.read_text().replace("http://www.w3.org/2000/svg", "")
