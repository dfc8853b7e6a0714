"""`qlorad`: run the daemon in the foreground, as launchd does, or make it a service."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from qlora_daemon import service_commands
from qlora_engine.job.errors import Exit, QloradError
from qlora_engine.job.text import plain, plain_lines
from qlora_engine.job.unforeseen import refused_by_system

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from qlora_engine import __version__  # noqa: PLC0415

        typer.echo(f"qlorad {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C; or, with a command, as a service.

    It watches QLORAD_HOME/jobs (~/qlora/jobs) and trains what is dropped there, one job at a time.
    Its log is QLORAD_HOME/logs/qlorad.jsonl. Then try: qlora submit job.yaml
    """
    if context.invoked_subcommand is None:
        from qlora_daemon.service import serve  # noqa: PLC0415  # `--help` needs none of it
        from qlora_worker.settings import Settings  # noqa: PLC0415

        serve(Settings.read())


app.command()(service_commands.install)
app.command()(service_commands.uninstall)
app.command()(service_commands.status)
app.command()(service_commands.start)
app.command()(service_commands.stop)
app.command()(service_commands.restart)


CLICK_USAGE = 2  # what typer exits with for a command line that is wrong; here it is sysexits' 64


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: errors of ours are one message and an exit code."""
    try:
        app(arguments, prog_name="qlorad")
    except SystemExit as end:
        sys.exit(Exit.USAGE if end.code == CLICK_USAGE else end.code)
    except QloradError as error:
        sys.stderr.write(f"qlorad: {plain_lines(error)}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        refused = refused_by_system(error)
        sys.stderr.write(f"qlorad: {plain_lines(refused)}\n")
        sys.exit(refused.exit_code)
    except Exception as error:  # noqa: BLE001  # a bug: one line for the person, the rest for whoever mends it
        said = plain(f"a bug, {type(error).__name__}: {error}", 300)
        sys.stderr.write(f"qlorad: {said}\n  details: {_keep_details()}\n")
        sys.exit(Exit.SOFTWARE)


def _keep_details() -> str:
    import tempfile  # noqa: PLC0415
    import traceback  # noqa: PLC0415

    with tempfile.NamedTemporaryFile("w", prefix="qlorad-", suffix=".txt", delete=False) as file:
        traceback.print_exc(file=file)
    return file.name


if __name__ == "__main__":
    main()
