"""Start the worker: `python -P -m qlora_worker --parent-fd N`, as the daemon does."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading

from redis.exceptions import RedisError

from qlora_engine.job.errors import QloradError
from qlora_engine.job.events import Event, EventLog, to_line
from qlora_worker.connection import in_words
from qlora_worker.settings import Settings
from qlora_worker.training import TASK_MODULE
from qlora_worker.worker import TrainingWorker


def main(*, task_module: str = TASK_MODULE) -> int:
    """Work until asked to stop, or until the process that holds the other end of the pipe is gone."""
    parser = argparse.ArgumentParser(prog="qlora_worker", description=__doc__)
    parser.add_argument("--parent-fd", type=int, help="a pipe; its end of file means stop")
    arguments = parser.parse_args()
    _log_as_events()
    try:
        worker = TrainingWorker(Settings.read(), task_module=task_module)
        if arguments.parent_fd is not None:
            _stop_with_parent(arguments.parent_fd)
        worker.work(logging_level="INFO")
    except QloradError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _stop_with_parent(descriptor: int) -> None:
    """Treat the end of the daemon, however it came, as a request to stop."""
    os.set_inheritable(descriptor, False)  # the training process watches this one, not the daemon

    def wait() -> None:
        while os.read(descriptor, 1):
            pass  # nothing is ever written; only the end matters
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _log_as_events() -> None:
    """Send what libraries log to standard error as events, which the daemon relays into the service log."""

    def write(event: Event) -> None:
        sys.stderr.write(to_line(event) + "\n")

    log = EventLog([write])

    class Relay(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(record.args, tuple):  # RQ logs its trouble with Redis, which names host and port
                record.args = tuple(in_words(one) if isinstance(one, RedisError) else one for one in record.args)
            message = record.getMessage()
            if record.exc_info and record.exc_info[1]:
                error = record.exc_info[1]
                message += f" ({type(error).__name__}: {in_words(error) if isinstance(error, RedisError) else error})"
            log.emit("library.log", logger=record.name, message=message)

    logging.basicConfig(handlers=[Relay()], level=logging.WARNING, force=True)


if __name__ == "__main__":
    sys.exit(main())
