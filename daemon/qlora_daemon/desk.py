"""What clients ask, carried out and answered in the owner's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pydantic import ValidationError

from qlora_daemon.admission import BUG_REMEDY, Admission
from qlora_daemon.orders import Orders
from qlora_daemon.queue_health import QueueHealth
from qlora_engine.job.errors import JobRejected, QloradError
from qlora_engine.job.events import EventLog
from qlora_engine.job.unforeseen import refused_by_system
from qlora_worker.connection import TROUBLE, in_words
from qlora_worker.messages import Answer, Submission
from qlora_worker.requests import Received, Requests


class Desk:
    """Carries out requests. Each can come again after a fault, and is then only answered again.

    Args:
        requests: their stream.
        health: is told when Redis does not answer.
        log: the service log.
        answered: is told which entries of the stream have been answered.
        forgotten: is told that answers could not be sent.
    """

    def __init__(
        self,
        requests: Requests,
        health: QueueHealth,
        log: EventLog,
        *,
        answered: Callable[[Iterable[str]], None],
        forgotten: Callable[[], None],
    ) -> None:
        self._requests, self._health, self._log = requests, health, log
        self._answered, self._forgotten = answered, forgotten
        self._answers: list[tuple[Received, Answer]] = []

    def carry_out(self, received: Received, admission: Admission, orders: Orders) -> None:
        """Do what is asked, or answer why not."""
        request = received.request
        if request is None:
            self.reply(received, Answer.refused(_not_understood(received.problem)))
            return
        self._log.emit("request.received", request=request.key, kind=request.kind)
        try:
            if request.kind == "submit":
                admission.submit(received, Submission.model_validate(request.payload))
            else:
                self.reply(received, orders.carry_out(request))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            self.reply(received, Answer.refused(_not_understood(f"{place}: {first['msg']}")))
        except QloradError as error:
            self.reply(received, Answer.refused(error))
        except OSError as error:
            self.reply(received, Answer.refused(refused_by_system(error)))
        except Exception as error:  # noqa: BLE001  # whoever asked must not wait for an answer that never comes
            self._log.emit(
                "internal.error", doing=f"carrying out {request.kind}", error=f"{type(error).__name__}: {error}"
            )
            self.reply(
                received,
                Answer.refused(QloradError(f"The daemon cannot {request.kind} this: a bug in it.", remedy=BUG_REMEDY)),
            )

    def reply(self, received: Received, answer: Answer) -> None:
        """Answer, at the next `send`."""
        self._answers.append((received, answer))

    def send(self) -> None:
        """Send all answers. If Redis is away the requests stay on their stream, and are answered when it is back."""
        answers, self._answers = self._answers, []
        if not answers:
            return
        try:
            self._requests.answer(answers)
        except TROUBLE as error:
            self._health.failed(in_words(error))
            self._forgotten()
            return
        self._answered(received.entry for received, _ in answers)
        for received, answer in answers:
            self._log.emit("request.answered", request=received.key, ok=answer.ok, what=answer.what or answer.job or "")


def _not_understood(problem: str) -> JobRejected:
    return JobRejected(
        f"The request cannot be understood: {problem}.",
        remedy="Use a client of the daemon's version (`qlora --version`, `qlorad --version`).",
    )
