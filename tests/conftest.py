"""What holds for all tests."""

from __future__ import annotations

import os
import signal

# A shell that starts the tests in the background has Ctrl-C ignored, and so would have every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Beside other tests: OpenBLAS's threads spin, and two for each of four trainings on two cores take six times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
