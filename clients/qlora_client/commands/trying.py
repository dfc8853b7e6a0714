"""Commands that ask a result, and measure and show what the engine does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlora_client import completion
from qlora_client.commands.common import AsJson, JobId, console, make_client, note, print_json
from qlora_client.usage import finite

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415


def try_job(
    job_id: JobId,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask; - reads it from standard input.")],
    *,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 200,
    temp: Annotated[
        float, typer.Option(min=0.0, max=10.0, callback=finite, help="0: the likeliest token each time.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws, with --temp above 0.")] = 0,
    best: Annotated[bool, typer.Option("--best", help="Ask the checkpoint of the lowest validation loss.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for the GPU: end with code 75.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask the base model and the adapted one, side by side.

    Waits until the GPU is free. A job that trains answers from its newest checkpoint; `qlora hold ID` stops it there.
    """
    from qlora_client.answers import Asking
    from qlora_client.side_by_side import read_prompt, table, try_both
    from qlora_worker.settings import Settings

    text = read_prompt(prompt)
    settings = Settings.read()
    run, answer = try_both(job_id, text, settings, Asking(max_tokens, temp, seed, best), wait=not now, tell=note)
    if as_json:
        from dataclasses import asdict

        print_json({"job": run.id, **asdict(answer)})
    else:
        console().print(table(answer))


def bench(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A job file, or its folder. [default: a small job]")
    ] = None,
    *,
    model: Annotated[
        str | None, typer.Option(help="Instead of the job's model.", autocompletion=completion.models)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Instead of the job's data: a folder with train.jsonl.")] = None,
    pairs: Annotated[int, typer.Option(min=1, max=100, help="How often each is measured.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, callback=finite, help="Measured of each run, at least.")] = 5.0,
    warm_up: Annotated[
        float, typer.Option(min=0.0, callback=finite, help="Seconds of each run that do not count.")
    ] = 3.0,
    case: Annotated[list[str] | None, typer.Option(help="padded, `packing off` or packed. [default: all]")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the result: a .svg, .png or .pdf file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the engine beside mlx_lm's trainer here.

    With one job on this machine. Nothing of it stays. What it measures, and how: docs/bench.md. Without FILE:
    `qlora models add smollm2` first.
    """
    from qlora_client.bench import Wishes, chosen_cases, run_bench, table
    from qlora_client.compare.plot import check_plot
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


def demo(as_json: AsJson = False) -> None:
    """Teach a small model SQL, in minutes.

    Adds the model, starts a daemon if none runs, drops an example job into its folder, shows the training, and lets
    the model answer before and after. It says at its end what to type next.
    """
    from qlora_client.demo import run_demo

    result = run_demo(make_client(), console(stderr=as_json))
    if as_json:
        print_json(result.as_dict())
