"""`python -m qlora_daemon` is `qlorad`."""

from qlora_daemon.cli import main

main()
