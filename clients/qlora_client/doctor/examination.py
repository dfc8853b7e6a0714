"""The examination: every topic at once, none of which may keep the others waiting."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qlora_client.doctor import (
    backup,
    clock,
    compute,
    disk,
    folders,
    memory,
    python,
    service,
    settings,
    unattended,
)
from qlora_client.doctor import queue as queue_topic
from qlora_client.doctor.finding import Finding, Severity
from qlora_client.doctor.machine import Machine
from qlora_client.doctor.topic import Topic
from qlora_client.failures import write_details
from qlora_engine.host.reach import Answer, reach

# In the order of the page. Any: each has facts of its own kind.
TOPICS: tuple[Topic[Any], ...] = (
    python.TOPIC,
    compute.TOPIC,
    memory.TOPIC,
    folders.HOME,
    disk.TOPIC,
    backup.TOPIC,
    folders.DATA,
    queue_topic.TOPIC,
    service.TOPIC,
    settings.TOPIC,
    clock.TOPIC,
    unattended.TOPIC,
)
Answers = queue.SimpleQueue[tuple[str, list[Finding]]]
SECONDS = 10.0  # for all of it; a healthy machine takes one or two


@dataclass(frozen=True)
class Examination:
    """What was found, in the order of the page.

    Attributes:
        seconds: that it took.
    """

    findings: tuple[Finding, ...]
    seconds: float


def examine(machine: Machine, topics: Sequence[Topic[Any]] = TOPICS, seconds: float = SECONDS) -> Examination:
    """Examine a machine, each topic in a thread of its own.

    Args:
        machine: to be examined.
        topics: on the page.
        seconds: after which a topic that has not answered is given up, and said to hang.
    """
    begun = time.monotonic()
    answers: Answers = queue.SimpleQueue()
    done: dict[str, list[Finding]] = {}
    for topic in topics:
        if not topic.reads_home:
            _start(topic, machine, answers)
    # Before anything in the home is read: a thread that reads a disk which is away would keep this program from ending.
    home_hangs = reach([machine.home.path])[machine.home.path].answer is Answer.HANGS
    for topic in topics:
        if topic.reads_home and home_hangs:
            done[topic.name] = []  # the topic of the home says why
        elif topic.reads_home:
            _start(topic, machine, answers)
    while len(done) < len(topics):
        try:
            name, findings = answers.get(timeout=max(0.0, begun + seconds - time.monotonic()))
        except queue.Empty:
            break
        done[name] = findings
    found = [finding for topic in topics for finding in done.get(topic.name, [_late(topic, seconds)])]
    return Examination(tuple(found), time.monotonic() - begun)


def _start(topic: Topic[Any], machine: Machine, answers: Answers) -> None:
    def work() -> None:
        try:
            findings = topic.examine(machine)
        except Exception as error:  # noqa: BLE001  # a bug in one topic must not hide what is wrong with the others
            findings = [_bug(topic, error, machine)]
        answers.put((topic.name, findings))

    # A daemon thread, since one that hangs must not keep this program from ending.
    threading.Thread(target=work, name=f"doctor-{topic.name}", daemon=True).start()


def _bug(topic: Topic[Any], error: Exception, machine: Machine) -> Finding:
    details = write_details(error, machine.home.logs)
    return Finding(
        topic.name,
        "look",
        Severity.WARNING,
        f"This could not be examined: a bug, {type(error).__name__}: {error}.",
        f"Report it{f' with {details}' if details else ''}.",
    )


def _late(topic: Topic[Any], seconds: float) -> Finding:
    return Finding(
        topic.name,
        "look",
        Severity.WARNING,
        f"This could not be examined: no answer within {seconds:g} s.",
        "Try again when the machine is less busy; if it hangs again, restart the machine.",
    )
