"""A training process that ends at once, as QLORA_TEST_END says: with a code, or by a signal, a negative number."""

import os
import signal
import sys

if __name__ == "__main__":
    end = int(os.environ["QLORA_TEST_END"])
    if end < 0:
        signal.signal(-end, signal.SIG_DFL) if -end != signal.SIGKILL else None
        os.kill(os.getpid(), -end)
        signal.pause()
    sys.exit(end)
