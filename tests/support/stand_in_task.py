"""A training process without training: obeys the contract of `qlora_worker.task` in a tenth of a second.

The job's seed picks a behaviour, so that a test can say in a job file what shall happen:
0 trains `iters` steps of 30 ms; 1 crashes (SIGKILL) in its first step; 2 fails with a reason; 3 ignores the
first SIGTERM; 4 ignores both; 5 crashes in its first attempt only; 6 is stopped (SIGSTOP) in step 13 of its first
attempt; 7 hangs in native code, with the interpreter's lock, in step 3 of each attempt; 8 dies of a failed
allocation in its first attempt, and steps down the memory ladder in its second.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import threading
import time

from qlora_engine.job import durable, lock
from qlora_engine.job.errors import Exit
from qlora_engine.job.events import EventLog, file_sink
from qlora_engine.job.pulse import Pulse
from qlora_engine.job.record import JobRecord
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.states import State
from qlora_engine.settings import EngineSettings
from qlora_worker.task import write_stacks_on_request

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
    write_stacks_on_request(run)
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
        if spec.seed == 8 and arguments.attempt == 1:
            os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
            os.abort()
        if spec.seed == 8 and arguments.attempt == 2:
            log.emit("ladder.rung", rung="split", change="micro-batches of 2", reason="no memory", effective_batch=4)
            return Exit.TEMPFAIL
        if spec.seed == 2:
            log.emit("training.failed", error="TrainingFailed", what="It broke.", where="here", remedy="Mend it.")
            return Exit.DATAERR
        return train(run, spec, log, metrics, stops, attempt=arguments.attempt)


def train(run, spec, log, metrics, stops, *, attempt) -> int:
    pulse = Pulse(run.pulse, attempt)
    pulse.enter("train")
    newest = run.path / "checkpoints" / "step"
    newest.parent.mkdir(exist_ok=True)
    first = int(newest.read_text()) if newest.exists() else 0

    def save(step: int) -> None:
        durable.write_text(newest, str(step))
        log.emit("checkpoint.saved", step=step, path=str(newest), why="count", bytes=1, seconds=0.0)

    if first:
        log.emit("training.resumed", step=first, path=str(newest), exact=True, changed=[])
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
        if spec.seed == 6 and step == 13 and attempt == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        if spec.seed == 7 and step == 3:
            sum(itertools.repeat(0))
        pulse.beat(step)
        metrics.emit(
            "training.step", step=step, steps=spec.iters, update=step, epoch=0, loss=1 / step, tokens=1,
            tokens_per_second=20.0, gradient_norm=1.0, seconds=STEP_SECONDS, rows=1, documents=1,
            memory_gb=0.0, peak_gb=0.0, cache_gb=0.0, process_gb=0.0,
        )  # fmt: skip
        if step % SAVE_EVERY == 0:
            save(step)
    log.emit(
        "training.done", step=spec.iters, seconds=time.process_time(), tokens=spec.iters, loss_before=None,
        loss_after=None, kept="last", kept_step=spec.iters, adapters=str(run.adapters),
    )  # fmt: skip
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
