"""What runs in the training process: `python -P -m qlora_worker.task ID ATTEMPT --parent-fd N`.

Ends with 0 when the job is done, 75 when another attempt goes on (or this one may not train at all), and with the code
of its error otherwise, after a `training.failed` event. What it prints goes to the run's output.log.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from qlora_engine.job import lock
from qlora_engine.job.errors import AttemptOutdated, Exit, GpuBusy, QloradError
from qlora_engine.job.events import EventLog, file_sink
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.kernels import KernelCache
from qlora_engine.job.pulse import Pulse
from qlora_engine.job.record import JobRecord
from qlora_engine.job.report_process import report_on
from qlora_engine.job.resolved import ResolvedFuse, ResolvedJob
from qlora_engine.job.states import State
from qlora_engine.job.unforeseen import explained
from qlora_engine.settings import EngineSettings
from qlora_engine.training.stop import StopRequest

LOCK_WAIT = 2.0  # seconds; whoever tests the lock holds it for an instant


def main() -> int:
    """Carry out one attempt of one job."""
    arguments = _parse()
    faulthandler.enable()
    settings = EngineSettings.read()
    run = settings.folders.run(arguments.job)
    write_stacks_on_request(run)
    logs: list[EventLog] = []  # none until it is certain that this attempt may write, and has something to save

    def announce(cause: str) -> None:
        for log in logs:
            log.emit("training.stopping", cause=cause)

    stop = StopRequest(arguments.parent_fd, announce=announce)
    stop.watch()
    with stop.nothing_to_lose():
        try:
            held = _take_gpu(settings, run, arguments.attempt)
        except (GpuBusy, AttemptOutdated) as refused:
            print(refused, file=sys.stderr)  # noqa: T201  # output.log
            return refused.exit_code
        log = EventLog([file_sink(run.events)], job=run.id, attempt=arguments.attempt)
        if JobRecord.load(run.state).kind == "fuse":
            with held:
                return _fuse(run, log, arguments.attempt, settings)
    logs.append(log)
    with held:
        code = _train(run, log, arguments.attempt, stop, settings)
    if settings.report and code != Exit.TEMPFAIL:  # a run that goes on is not worth a page yet
        report_on(run, log)
    return code


def write_stacks_on_request(run: RunFolder) -> None:
    """Have SIGUSR1 append the stacks of all threads to the run's `stacks.txt`, whatever they are doing.

    Written by the C handler, so that it also works while a native call never returns.
    """
    with suppress(OSError):  # no room for the file: then a stall ends the process without stacks
        file = run.stacks.open("ab", buffering=0)  # open until the process ends; faulthandler holds it
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True, chain=False)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="qlora_worker.task", description=__doc__)
    parser.add_argument("job")
    parser.add_argument("attempt", type=int)
    parser.add_argument("--parent-fd", type=int, default=None)
    return parser.parse_args()


def _take_gpu(settings: EngineSettings, run: RunFolder, attempt: int) -> lock.HeldLock:
    """Take the GPU lock, then make sure that the daemon still wants this attempt.

    In this order: while the lock is held no other attempt can train, so the answer stays true.
    """
    holder = {"pid": os.getpid(), "job": run.id, "attempt": attempt}
    try:
        held = lock.acquire(settings.gpu_lock_path, holder, wait=LOCK_WAIT)
    except lock.LockHeld as error:
        raise GpuBusy("Another process holds the GPU.", where=str(error)) from None
    record = JobRecord.load(run.state)
    if record.attempt != attempt or record.state not in (State.STARTING, State.RUNNING):
        held.release()
        raise AttemptOutdated(f"Attempt {attempt} is over: the job is {record.state}, attempt {record.attempt}.")
    return held


def _train(run: RunFolder, log: EventLog, attempt: int, stop: StopRequest, settings: EngineSettings) -> int:
    metrics = EventLog([file_sink(run.metrics)], job=run.id, attempt=attempt)
    try:
        with stop.nothing_to_lose():
            from qlora_engine.training.measured import Measured  # noqa: PLC0415
            from qlora_engine.training.run import Outcome, train  # noqa: PLC0415  # seconds of imports
            from qlora_engine.training.runtime import Runtime  # noqa: PLC0415
            from qlora_engine.training.token_cache import TokenCache  # noqa: PLC0415

            job = ResolvedJob.needed(run.spec)
        pulse = Pulse(run.pulse, attempt)
        cache = TokenCache.of(settings.folders, settings.token_cache_gb)
        found = Runtime.found()
        kernels = KernelCache(settings.folders.kernels, found.versions["mlx"], f"{found.backend} {found.device}")
        with kept(kernels, run, log):
            outcome = train(
                job, run, attempt=attempt, log=log, metrics=metrics, stop=stop, pulse=pulse, cache=cache,
                known=Measured(settings.folders.measured), memory_share=settings.memory_share,
            )  # fmt: skip
    except Exception as error:  # noqa: BLE001  # the last chance to say what happened
        failure = explained(error, run.output)
        with suppress(OSError):  # a full disk takes no line either; the exit code says it
            log.emit("training.failed", **_fields(failure))
        return failure.exit_code
    return Exit.OK if outcome is Outcome.DONE else Exit.TEMPFAIL


@contextmanager
def kept(kernels: KernelCache, run: RunFolder, log: EventLog) -> Iterator[None]:
    """What MLX compiled for earlier attempts is there; what it compiles is kept, if nothing is raised.

    A disk that takes neither kernels nor a line about them is no trouble of the job.
    """
    with _said(log, "lending them"):
        if lent := kernels.lend(run.temporary):
            log.emit("kernels.lent", files=lent)
    yield
    with _said(log, "keeping them"):
        if new := kernels.keep(run.temporary):
            log.emit("kernels.kept", files=new)


@contextmanager
def _said(log: EventLog, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            log.emit("kernels.lost", doing=doing, reason=str(error))


def _fuse(run: RunFolder, log: EventLog, attempt: int, settings: EngineSettings) -> int:
    try:
        from qlora_engine.training.fuse import fuse  # noqa: PLC0415  # seconds of imports

        job = ResolvedFuse.needed(run.spec)
        pulse = Pulse(run.pulse, attempt)
        fuse(job, settings.folders, run, log=log, pulse=pulse, memory_share=settings.memory_share)
    except Exception as error:  # noqa: BLE001  # as above
        failure = explained(error, run.output)
        with suppress(OSError):  # as above
            log.emit("fuse.failed", **_fields(failure))
        return failure.exit_code
    return Exit.OK


def _fields(failure: QloradError) -> dict[str, object]:
    return {key: value for key, value in failure.as_dict().items() if key != "exit_code"}


if __name__ == "__main__":
    sys.exit(main())
