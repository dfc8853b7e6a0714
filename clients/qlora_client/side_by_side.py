"""`qlora try`: one question, and what the base and the adapted model say to it, in two columns."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qlora_client.answers import Answer, Asking, ask_both
from qlora_client.records import find_job
from qlora_client.signals import ended_by_signals
from qlora_engine.job.errors import Exit, QloradError
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.text import plain, plain_lines
from qlora_worker.settings import Settings

STANDARD_INPUT = "-"


class NothingAsked(QloradError):
    """The prompt is empty."""

    exit_code = Exit.USAGE


def read_prompt(argument: str) -> str:
    """The prompt: as written, or all of standard input for `-`, without the line break at its end.

    Raises:
        NothingAsked: it is empty.
    """
    text = sys.stdin.read().removesuffix("\n") if argument == STANDARD_INPUT else argument
    if not text.strip():
        raise NothingAsked("There is no prompt.", where="PROMPT", remedy='Write it: qlora try ID "Which day is it?"')
    return text


def try_both(
    id_part: str, prompt: str, settings: Settings, asking: Asking, *, wait: bool, tell: Callable[[str], None]
) -> tuple[RunFolder, Answer]:
    """Ask both models of the job that this text names; raises as `find_job` and `ask_both` do."""
    run = find_job(settings.folders, id_part)
    with ended_by_signals():
        (answer,) = ask_both(run, [prompt], settings, asking, wait=wait, tell=tell)
    return run, answer


def table(answer: Answer) -> RenderableType:
    """Both answers beside one another, under what was asked."""
    shown = Table(box=None, padding=(0, 2), header_style="dim", expand=False)
    shown.add_column("BASE", overflow="fold", ratio=1)
    shown.add_column(f"ADAPTED ({plain(answer.weights, 40)})", overflow="fold", ratio=1)
    shown.add_row(_said(answer.base, "yellow"), _said(answer.adapted, "green"))
    return Group(Text(plain_lines(answer.prompt), style="dim"), Text(), shown)


def _said(text: str, style: str) -> Text:
    return Text(plain_lines(text).strip() or "(nothing)", style=style)
