"""Commands that measure and show what the engine does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlora_client.commands.common import AsJson, console, make_client, print_json

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415


def bench(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A job file. [default: a small job]")] = None,
    *,
    model: Annotated[str | None, typer.Option(help="Instead of the job's model.")] = None,
    data: Annotated[Path | None, typer.Option(help="Instead of the job's data: a folder with train.jsonl.")] = None,
    pairs: Annotated[int, typer.Option(min=1, max=100, help="How often each is measured.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Measured of each run, at least.")] = 5.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds of each run that do not count.")] = 3.0,
    case: Annotated[list[str] | None, typer.Option(help="padded, `packing off` or packed. [default: all]")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the result: a .svg, .png or .pdf file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the engine beside mlx_lm's trainer on this machine, with one job.

    Nothing of it stays. What it measures, and how: docs/bench.md. Without FILE: `qlora models add smollm2` first.
    """
    from qlora_client.bench import Wishes, check_plot, chosen_cases, run_bench, table
    from qlora_engine.bench.plot import draw
    from qlora_engine.bench.trainer import Effort
    from qlora_worker.settings import Settings

    if plot is not None:
        check_plot(plot)
    overrides = {key: str(value) for key, value in (("model", model), ("data", data)) if value is not None}
    wishes = Wishes(file, overrides, pairs, Effort(warm_up, seconds), chosen_cases(case or []))
    result = run_bench(wishes, Settings.read())
    if as_json:
        print_json(result.as_dict())
    else:
        console().print(table(result))
    if plot is not None:
        draw(result, plot)


def demo() -> None:
    """Teach a small model SQL, in minutes.

    Adds the model, starts a daemon if none runs, drops an example job into its folder, shows the training, and lets
    the model answer before and after. It says at its end what to type next.
    """
    from qlora_client.demo import run_demo

    run_demo(make_client(), console())
