"""`python -m qlora_daemon` is `qlorad`."""

from qlora_daemon.entry import main

main()
