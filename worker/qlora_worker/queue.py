"""RQ's queue of at most one job, by which the daemon gives an attempt to the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from redis import Redis

from qlora_engine.job.folder import JOB_ID
from qlora_worker.connection import Keys

if TYPE_CHECKING:
    from rq import Queue

# What RQ would import and call, if our worker were any other.
NOT_A_FUNCTION = "qlorad.training"
TTL_SECONDS = 3600  # what a crash leaves behind in Redis goes away by itself
MAX_NAMES = 1000  # in a list that holds one


def rq_id(keys: Keys, job_id: str, attempt: int) -> str:
    """RQ's name for one attempt of a job."""
    return f"{keys.queue}-{job_id}-{attempt}"


def attempt_in(name: str, keys: Keys) -> tuple[str, int] | None:
    """The job and the attempt that a name of RQ's stands for; None for one that is not ours."""
    job_id, _, attempt = name.removeprefix(f"{keys.queue}-").rpartition("-")
    if name.startswith(f"{keys.queue}-") and JOB_ID.fullmatch(job_id) and attempt.isdigit():
        return job_id, int(attempt)
    return None


def read_rq_arguments(arguments: object) -> tuple[str, int]:
    """Job id and attempt out of what RQ delivered, which anybody with access to Redis could have written.

    Raises:
        ValueError: it is anything else.
    """
    match arguments:
        case [str(job_id), int(attempt)] if JOB_ID.fullmatch(job_id) and 0 < attempt < 10**9:
            return job_id, attempt
    raise ValueError("not a job id and an attempt")


class JobQueue:
    """RQ's queue, as the daemon uses it: one attempt of one job at a time, by id only."""

    def __init__(self, connection: Redis, keys: Keys) -> None:
        self._connection, self._keys = connection, keys

    def offer(self, job_id: str, attempt: int) -> None:
        """Give one attempt of a job to the worker.

        Raises:
            RedisError, OSError: Redis does not answer or refuses.
        """
        from rq.job import Job  # noqa: PLC0415  # RQ costs memory and time that a daemon with nothing to train need not spend
        from rq.serializers import JSONSerializer  # noqa: PLC0415

        job = Job.create(
            NOT_A_FUNCTION,
            args=[job_id, attempt],
            id=rq_id(self._keys, job_id, attempt),
            connection=self._connection,
            serializer=JSONSerializer,
            description=f"{job_id} {attempt}",
            timeout=-1,
            ttl=TTL_SECONDS,
            result_ttl=60,
            failure_ttl=60,
        )
        self._rq().enqueue_job(job)

    def withdraw(self, job_id: str, attempt: int) -> None:
        """Take an attempt back, wherever in Redis it is. Nothing happens to a training process."""
        forget(self._connection, self._keys, rq_id(self._keys, job_id, attempt))

    def clear(self) -> None:
        """Forget every attempt that RQ knows: the run folders say what is to be done."""
        queue = self._rq()
        pattern = f"rq:job:{self._keys.queue}-*"
        names = list(self._connection.scan_iter(pattern, count=1000))
        for name in [queue.key, queue.intermediate_queue_key, *names]:
            self._connection.delete(name)

    def waiting(self) -> list[tuple[str, int]]:
        """The attempts that no worker has taken yet."""
        return self._attempts(self._rq().key)

    def taken(self) -> list[tuple[str, int]]:
        """The attempts that a worker took and has not finished with, whether it lives or not."""
        return self._attempts(self._rq().intermediate_queue_key)

    def _attempts(self, key: str) -> list[tuple[str, int]]:
        names = cast("list[bytes]", self._connection.lrange(key, 0, MAX_NAMES))
        # Anybody with access to Redis could have written them.
        found = (attempt_in(name.decode(errors="replace"), self._keys) for name in names)
        return [attempt for attempt in found if attempt is not None]

    def _rq(self) -> Queue:
        from rq import Queue  # noqa: PLC0415
        from rq.serializers import JSONSerializer  # noqa: PLC0415

        return Queue(self._keys.queue, connection=self._connection, serializer=JSONSerializer)


def forget(connection: Redis, keys: Keys, name: str) -> None:
    """Delete everything that RQ keeps of one of its jobs.

    RQ's own `delete` reads executions first, and fails when Redis was wiped in between.
    """
    queue = f"rq:queue:{keys.queue}"
    with connection.pipeline() as pipeline:
        pipeline.lrem(queue, 0, name)
        pipeline.lrem(f"{queue}:intermediate", 0, name)
        pipeline.delete(
            f"rq:job:{name}", f"rq:job:{name}:dependents", f"rq:job:{name}:dependencies", f"rq:results:{name}"
        )
        pipeline.execute()
