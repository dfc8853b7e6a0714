"""The examiner within bounds that no job file may reach: a second of processor time and 100 MB for each."""

import resource
import signal
import sys
from pathlib import Path

from qlora_engine.job import validate  # noqa: F401  # its memory is not the file's
from qlora_engine.job.examine import verdict_on
from qlora_engine.job.verdict import ExamineRequest, Verdict, answer_requests

SECONDS = 1.0  # of processor time: on a busy machine a second of the clock proves nothing
BYTES = 100_000_000


def bounded(request: ExamineRequest) -> Verdict:
    """The verdict; the process ends if it takes too much."""
    limit = _data_bytes() + BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process
    try:
        return verdict_on(request)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _data_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(answer_requests(bounded))
