"""Commands that make a model of what a job has learned, as jobs of the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qlora_client.commands.common import AsJson, JobId, make_client, note, print_json
from qlora_client.commands.submitting import say_left
from qlora_client.commands.typed import Option, as_typed, given
from qlora_engine.job.states import State

if TYPE_CHECKING:
    from pathlib import Path

    from qlora_client.api import Client
    from qlora_engine.job.record import JobRecord

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415

Best = Annotated[bool, typer.Option("--best", help="Take the checkpoint of the lowest validation loss.")]
After = Annotated[list[str] | None, typer.Option(metavar="ID", help="Another job that must be done first.")]
Priority = Annotated[int | None, typer.Option(min=-100, max=100, help="Higher goes first.")]
Urgent = Annotated[bool, typer.Option("--urgent", help="Before all others; the running job stops for it.")]
Hold = Annotated[bool, typer.Option("--hold", help="Let it wait for `qlora release`.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until it has ended; the exit code says how.")]
Again = Annotated[bool, typer.Option("--again", help="Even if just this is on its way already.")]


def fuse(
    job: JobId,
    *,
    best: Best = False,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="16 bits wide: larger, and answers as base and adapters do.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Put it among the models under this name.")] = None,
    after: After = None,
    priority: Priority = None,
    urgent: Urgent = False,
    hold: Hold = False,
    wait: Wait = False,
    again: Again = False,
    as_json: AsJson = False,
) -> None:
    """Make one model of a job's adapters and its base.

    Prints the id of the job that does it, which waits for its turn, and for the other job where that has not ended.
    The model is in its run folder then, in model/: for mlx_lm, its server, or as the `model` of another job.
    """
    client = make_client()
    options = [*_wishes(after, priority, best=best, urgent=urgent, hold=hold), *given("--name", "add_as", name)]
    options += given("--dequantize", "dequantize", dequantize)
    _hand_over(client, job, options, exports=False, wait=wait, again=again, as_json=as_json)


def export(
    job: JobId,
    *,
    gguf: Annotated[bool, typer.Option("--gguf", help="Into one file for llama.cpp and Ollama.")] = False,
    best: Best = False,
    after: After = None,
    priority: Priority = None,
    urgent: Urgent = False,
    hold: Hold = False,
    wait: Wait = False,
    again: Again = False,
    as_json: AsJson = False,
) -> None:
    """Write a job's adapters and its base as one GGUF file.

    Prints the id of the job that does it. In 16 bits, for models of the llama and mistral architectures. The file is in
    its run folder then, in gguf/, with a Modelfile: `ollama create NAME -f Modelfile`.
    """
    if not gguf:
        raise typer.BadParameter("Say into what: --gguf is what there is.")
    client = make_client()
    options = [
        *_wishes(after, priority, best=best, urgent=urgent, hold=hold),
        Option("--gguf", "export", "gguf", "--gguf"),
    ]
    _hand_over(client, job, options, exports=True, wait=wait, again=again, as_json=as_json)


def _wishes(after: list[str] | None, priority: int | None, *, best: bool, urgent: bool, hold: bool) -> list[Option]:
    """What the options say that both commands have."""
    return [
        *([Option("--best", "weights", "best", "--best")] if best else []),
        *given("--after", "after", after),
        *given("--priority", "priority", priority),
        *given("--urgent", "urgent", urgent),
        *given("--hold", "hold", hold),
    ]


def _hand_over(
    client: Client, job: str, options: list[Option], *, exports: bool, wait: bool, again: bool, as_json: bool
) -> None:
    keys = {option.key: option.value for option in options}
    letter = client.fusing(job, "export" if exports else "fuse", keys, again=again)
    source = client.job(job)
    with as_typed([*options, Option("ID", "fuse", source.id, source.id)]):
        submitted = client.send_or_leave(letter)
    if not isinstance(submitted, str):
        say_left(submitted, client.home, wait=wait, as_json=as_json)
        return
    run = client.run(submitted)
    result = run.gguf if exports else run.model
    if not as_json:
        typer.echo(submitted)
    elif not wait:
        print_json({"job": submitted, "source": source.id, "result": str(result)})
    _say_from(source)
    if not wait:
        _say_next(client.job(submitted), result, exports=exports)
        return
    from qlora_client.waiting import exit_code, wait_until_ended

    record = wait_until_ended(client, submitted, note)
    if as_json:
        print_json({**record.model_dump(mode="json"), "source": source.id, "result": str(result)})
    if record.state is State.DONE:
        note(f"It is in {result}")
        _say_use(result, exports=exports)
    raise typer.Exit(exit_code(record))


def _say_from(source: JobRecord) -> None:
    if source.state in (State.FAILED, State.CANCELLED):
        how = "failed" if source.state is State.FAILED else "was cancelled"
        note(f"{source.id} {how}: what it had learned until then is taken.")


def _say_next(record: JobRecord, result: Path, *, exports: bool) -> None:
    if record.state is State.HELD:
        note(f"It is held. Let it go on: qlora release {record.id}")
    elif record.state is State.BLOCKED:
        note(f"It {record.reason}.")
    note(f"Watch it: qlora logs -f {record.id}")
    note(f"It will be in {result}")
    _say_use(result, exports=exports)


def _say_use(result: Path, *, exports: bool) -> None:
    if exports:
        note(f"For Ollama: ollama create NAME -f {result / 'Modelfile'}")
    else:
        note(f"Serve it: python -m mlx_lm server --model {result}")
