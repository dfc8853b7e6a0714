"""Draws the pictures of the terminal; `--check` says whether those that are there are up to date.

PYTHONPATH=tools python -m screens [--check] [FOLDER]
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, RenderableType
from rich.text import Text

from qlora_client.chart import curve_of
from qlora_client.doctor.page import lines as doctor_lines
from qlora_client.feed import feed_of
from qlora_client.follow import read_events
from qlora_client.lines import styled_line
from qlora_client.listing import Summary, overview
from qlora_client.records import load_record
from qlora_client.top.look import Looking
from qlora_client.top.page import Room, page
from qlora_client.views import job_lines, job_view
from qlora_engine.job import lock
from qlora_engine.job.folder import Home
from screens.doctor import examination
from screens.home import DAEMON, NOW, TRAINS, make

FOLDER = Path(__file__).parents[2] / "docs" / "screens"
SIZES = {80: 24, 120: 36}  # columns: lines
# The page that shows a picture must not ask a server for a font.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*|<!--.*?-->\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)

Draw = Callable[[Home, int, int], Iterable[RenderableType]]


def _top(home: Home, width: int, height: int) -> Iterable[RenderableType]:
    looking = Looking(home)
    try:
        return list(_cut(page(looking.look(NOW), Room(width, height)), width))
    finally:
        looking.close()


def _cut(lines: Iterable[Text], width: int) -> Iterable[Text]:
    """Lines that end at the terminal's edge."""
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        yield line


def _ls(home: Home, width: int, _height: int) -> Iterable[RenderableType]:
    return _cut(job_lines([Summary.of(job.record, now=NOW) for job in overview(home).jobs], NOW), width)


def _show(home: Home, width: int, _height: int) -> Iterable[RenderableType]:
    run = home.run(TRAINS)
    feed = feed_of(run)
    return [job_view(load_record(run), run, feed.progress, feed.reports, curve=curve_of(feed, width, 10))]


def _logs(home: Home, _width: int, height: int) -> Iterable[RenderableType]:
    events = list(read_events(home.run(TRAINS).events))
    shown = [*events[:10], *events[-(height - 11) :]]
    return [styled_line(event, with_job=False) for event in shown]


def _doctor(_home: Home, width: int, _height: int) -> Iterable[RenderableType]:
    return doctor_lines(examination(), width)


COMMANDS: Mapping[str, tuple[str, Draw]] = {
    "top": ("qlora top", _top),
    "ls": ("qlora ls", _ls),
    "show": ("qlora show sql", _show),
    "logs": ("qlora logs sql", _logs),
    "doctor": ("qlora doctor", _doctor),
}


def pictures() -> dict[str, str]:
    """The pictures by the names of their files."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(HOME=folder, TZ="UTC")  # paths begin with ~, times are those of the files
        time.tzset()
        home = Home(Path(folder) / "qlora")
        make(home)
        with lock.held(home.daemon_lock, {"pid": DAEMON}):
            return {
                f"{name}-{width}.svg": _picture(title, draw(home, width, height), width, f"{name}-{width}")
                for name, (title, draw) in COMMANDS.items()
                for width, height in SIZES.items()
            }


def _picture(title: str, lines: Iterable[RenderableType], width: int, key: str) -> str:
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False,
        markup=False, emoji=False, legacy_windows=False,
    )  # fmt: skip
    for line in lines:
        console.print(line)
    return console.export_svg(title=title, code_format=FORMAT, unique_id=key)


def main(arguments: list[str]) -> int:
    """Draw, or check; returns the exit code."""
    checks = "--check" in arguments
    folder = next((Path(text) for text in arguments if text != "--check"), FOLDER).absolute()
    drawn = pictures()
    if not checks:
        for name, picture in drawn.items():
            (folder / name).write_text(picture, encoding="utf-8")
        return 0
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")}
    stale = sorted(name for name in drawn | there if drawn.get(name) != there.get(name))
    if stale:
        print(f"Not up to date: {', '.join(stale)}. Draw them anew: make screens", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
