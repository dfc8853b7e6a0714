"""`python -m qlora_engine job.yaml`: see `qlora_engine.foreground`."""

from qlora_engine.interrupts import quiet_while_importing


def main() -> None:
    """Import the program, and run it."""
    with quiet_while_importing():
        from qlora_engine.foreground import app  # noqa: PLC0415
    app(prog_name="python -m qlora_engine")


if __name__ == "__main__":
    main()
