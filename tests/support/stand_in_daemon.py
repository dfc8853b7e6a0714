"""The real daemon, whose worker's training process is the stand-in, and which needs no whole model to examine a job."""

import sys

from qlora_daemon.service import serve
from qlora_engine.job.errors import QloradError
from qlora_worker.settings import Settings

if __name__ == "__main__":
    try:
        serve(
            Settings.read(),
            worker_command=(sys.executable, "-P", "-m", "support.stand_in_worker"),
            examiner_module="qlora_engine.job.examine",
        )
    except QloradError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
