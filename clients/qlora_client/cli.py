"""The shell command `qlora`: its commands in the order of its help, and how it ends."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from qlora_client.commands import (
    comparing,
    fusing,
    jobs,
    making,
    models,
    queue,
    service,
    submitting,
    trying,
    upkeep,
    watching,
)
from qlora_client.commands.common import plain_home
from qlora_client.failures import report, report_unexpected
from qlora_client.usage import InPlainWords
from qlora_engine.job.errors import Exit, QloradError

CLICK_USAGE = 2  # what typer exits with for a command line that is wrong; here it is sysexits' 64

app = typer.Typer(
    name="qlora",
    cls=InPlainWords,
    help="Fine-tune models with QLoRA: hand jobs to the qlorad daemon, watch them, get the adapters.\n\n"
    "Start with `qlora doctor`, then `qlora demo`. A job of your own begins with `qlora init my-job`; it trains while "
    "`qlorad` runs in another terminal.",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="Add and list models.\n\nStart with `qlora models add smollm2`.", no_args_is_help=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        from qlora_engine import __version__  # noqa: PLC0415  # the rest of the help needs no package's metadata

        typer.echo(f"qlora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command()(making.init)
app.command()(submitting.validate)
app.command()(submitting.submit)
app.command()(making.schema)
app.command()(watching.top)
app.command("ls")(jobs.list_jobs)
app.command()(jobs.show)
app.command()(jobs.logs)
app.command("report")(jobs.write_report)
app.command()(comparing.compare)
app.command()(jobs.cancel)
app.command()(queue.hold)
app.command()(queue.release)
app.command()(queue.retry)
app.command(cls=queue.TakesNumbersUnderZero)(queue.prioritise)
app.command()(queue.pause)
app.command()(queue.resume)
app.command()(service.status)
app.command()(service.doctor)
app.command()(upkeep.clean)
app.command("try")(trying.try_job)
app.command()(fusing.fuse)
app.command()(fusing.export)
app.command()(trying.bench)
app.command()(trying.demo)
app.add_typer(models_app, name="models")
models_app.command("add")(models.add_model)
models_app.command("ls")(models.list_models)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets question marks, not an error
    try:
        app(arguments, prog_name="qlora")
    except SystemExit as end:
        return int(Exit.USAGE) if end.code == CLICK_USAGE else _as_code(end.code)
    except KeyboardInterrupt:
        return 130
    except QloradError as error:
        return report(error)
    except Exception as error:  # noqa: BLE001  # the last place before a traceback
        return report_unexpected(error, plain_home().logs)
    return int(Exit.OK)


def _as_code(code: object) -> int:
    return code if isinstance(code, int) else int(Exit.OK if code is None else Exit.SOFTWARE)


if __name__ == "__main__":
    sys.exit(main())
