"""A training process without training: obeys the contract of `qlora_worker.task` in a tenth of a second.

The job's seed picks a behaviour, so that a test can say in a job file what shall happen:
0 trains `iters` steps of 30 ms; 1 crashes (SIGKILL) in its first step; 2 fails with a reason; 3 ignores the
first SIGTERM; 4 ignores both; 5 crashes in its first attempt only.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time

from qlora_engine.job import durable, lock
from qlora_engine.job.errors import Exit
from qlora_engine.job.events import EventLog, file_sink
from qlora_engine.job.record import JobRecord
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.states import State
from qlora_engine.settings import EngineSettings

STEP_SECONDS = 0.03
SAVE_EVERY = 10


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("job")
    parser.add_argument("attempt", type=int)
    parser.add_argument("--parent-fd", type=int)
    arguments = parser.parse_args()
    settings = EngineSettings.read()
    run = settings.folders.run(arguments.job)
    spec = ResolvedJob.load(run.spec).spec
    stops = threading.Semaphore(0)
    signal.signal(signal.SIGTERM, lambda _number, _frame: stops.release())

    def watch_parent() -> None:
        while os.read(arguments.parent_fd, 1):
            pass
        stops.release()

    threading.Thread(target=watch_parent, daemon=True).start()
    holder = {"pid": os.getpid(), "job": arguments.job, "attempt": arguments.attempt}
    try:
        held = lock.acquire(settings.gpu_lock_path, holder, wait=2.0)
    except lock.LockHeld:
        return Exit.TEMPFAIL
    with held:
        record = JobRecord.load(run.state)
        if record.attempt != arguments.attempt or record.state not in (State.STARTING, State.RUNNING):
            return Exit.TEMPFAIL
        log = EventLog([file_sink(run.events)], job=run.id, attempt=arguments.attempt)
        metrics = EventLog([file_sink(run.metrics)], job=run.id, attempt=arguments.attempt)
        log.emit("training.started", pid=os.getpid(), backend="cpu", device="none", versions={}, blas=None, threads=1)
        if spec.seed == 1 or (spec.seed == 5 and arguments.attempt == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if spec.seed == 2:
            log.emit("training.failed", error="TrainingFailed", what="It broke.", where="here", remedy="Mend it.")
            return Exit.DATAERR
        return train(run, spec, log, metrics, stops)


def train(run, spec, log, metrics, stops) -> int:
    newest = run.path / "checkpoints" / "step"
    newest.parent.mkdir(exist_ok=True)
    first = int(newest.read_text()) if newest.exists() else 0

    def save(step: int) -> None:
        durable.write_text(newest, str(step))
        log.emit("checkpoint.saved", step=step, path=str(newest), bytes=1, seconds=0.0)

    if first:
        log.emit("training.resumed", step=first, path=str(newest))
    ignored = {3: 1, 4: 10**6}.get(spec.seed, 0)
    for step in range(first + 1, spec.iters + 1):
        if stops.acquire(timeout=STEP_SECONDS):
            if ignored:
                ignored -= 1
            elif spec.seed == 3:
                return Exit.TEMPFAIL
            else:
                log.emit("training.stopping", cause="SIGTERM")
                save(step - 1)
                log.emit("training.stopped", step=step - 1)
                return Exit.TEMPFAIL
        metrics.emit(
            "training.step", step=step, steps=spec.iters, update=step, epoch=0, loss=1 / step, tokens=1,
            tokens_per_second=20.0, seconds=STEP_SECONDS, memory_gb=0.0, peak_gb=0.0,
        )  # fmt: skip
        if step % SAVE_EVERY == 0:
            save(step)
    log.emit(
        "training.done", step=spec.iters, seconds=time.process_time(), tokens=spec.iters, loss_before=None,
        loss_after=None, adapters=str(run.adapters),
    )  # fmt: skip
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
