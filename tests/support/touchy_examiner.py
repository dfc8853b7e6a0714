"""An examiner that some job files end: `crash` at once, `second` unless it is the first here, `hang` by its silence."""

import os
import sys
import time

from qlora_engine.job.verdict import ExamineRequest, Verdict, answer_requests

answered = 0


def verdict_on(request: ExamineRequest) -> Verdict:
    """A rejection that names the process."""
    global answered  # noqa: PLW0603
    text = request.text or ""
    if text == "crash" or (text == "second" and answered):
        os._exit(3)
    if text == "hang":
        time.sleep(60)
    answered += 1
    return Verdict(what=f"{text} {os.getpid()}", remedy="none")


if __name__ == "__main__":
    sys.exit(answer_requests(verdict_on))
