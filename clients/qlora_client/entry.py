"""Where the shell command `qlora` begins."""

from qlora_engine.interrupts import quiet_while_importing


def main() -> int:
    """Import the program, and run it; returns its exit code."""
    with quiet_while_importing():
        from qlora_client.cli import main as run  # noqa: PLC0415
    return run()
