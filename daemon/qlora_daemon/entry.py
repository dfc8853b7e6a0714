"""Where the shell command `qlorad` begins."""

from qlora_engine.interrupts import quiet_while_importing


def main() -> None:
    """Import the program, and run it."""
    with quiet_while_importing():
        from qlora_daemon.cli import main as run  # noqa: PLC0415
    run()
