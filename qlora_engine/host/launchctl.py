"""launchctl(1): the one place that knows its words, its exit codes and its habits.

What it prints is no interface that Apple promises, so only the lines that are needed are read, each may be missing, and
whatever else is there is passed over.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from qlora_engine.host import launchd_plist
from qlora_engine.host.polling import comes_true
from qlora_engine.host.program import Finished, run
from qlora_engine.host.service import STOP_SECONDS, ServiceDefinition, ServiceState
from qlora_engine.job.errors import ProgramFailed

MACHINE = Path("/Library/LaunchDaemons")
SECONDS = 30.0  # for one call, which answers at once or not at all
END_SECONDS = STOP_SECONDS + 15.0  # until launchd has killed what did not stop
BUSY_SECONDS = 20.0  # that launchd may refuse a file since the service before it is not quite gone

# errno values with which launchctl ends
NO_SUCH_PROCESS = 3
INPUT_OUTPUT = 5  # of `bootstrap`: the service is still there, or the file is wrong
IN_PROGRESS = 36  # of `bootout`: it goes on by itself
ALREADY = 37
NO_SUCH_SERVICE = 113
NO_SUCH_DOMAIN = 125  # of `gui/…`: nobody is logged in there

_TOP_LEVEL = re.compile(r"^\t([^\t=]+?) = (.+)$", re.MULTILINE)  # deeper lines are of sockets and endpoints
_SIGNAL = re.compile(r": (\d+)$")


class Launchd:
    """launchd, for one service.

    Args:
        label: of the service.
        headless: a daemon of the machine, which needs nobody to be logged in, rather than an agent of the user.
        folder: where its file belongs. [default: where launchd looks for such]
    """

    name = "launchd"

    def __init__(self, label: str, *, headless: bool = False, folder: Path | None = None) -> None:
        self._label, self._headless = label, headless
        usual = MACHINE if headless else Path("~/Library/LaunchAgents").expanduser()
        self._folder = folder or usual

    @property
    def file(self) -> Path:
        """Where the property list belongs."""
        return self._folder / f"{self._label}.plist"

    def content(self, definition: ServiceDefinition) -> bytes:
        """The property list."""
        return launchd_plist.render(definition)

    def read(self, content: bytes) -> ServiceDefinition:
        """What it was made from. Raises `ValueError` for anything else."""
        return launchd_plist.read(content)

    def state(self) -> ServiceState:
        """What launchd knows, in whichever domain it is."""
        for domain in self._domains():
            answer = _ask("print", f"{domain}/{self._label}")
            if answer.code == 0:
                return parse_state(answer.out, f"{domain}/{self._label}")
            if answer.code not in (NO_SUCH_SERVICE, NO_SUCH_DOMAIN, NO_SUCH_PROCESS):
                raise _failed("print", answer)
        return ServiceState(loaded=False)

    def load(self) -> None:
        """Bootstrap the file, in the domain of whoever is logged in, or else in that of the user."""
        refused = None
        for domain in self._domains():
            _ask("enable", f"{domain}/{self._label}")  # one that a person had disabled would only say error 5
            refused = self._bootstrap(domain)
            if refused is None:
                return
            if refused.code != NO_SUCH_DOMAIN:
                break
        assert refused is not None  # noqa: S101  # there is a domain, and it refused
        raise _failed("bootstrap", refused, remedy=f"Check the file: plutil -lint '{self.file}'")

    def _bootstrap(self, domain: str) -> Finished | None:
        """The refusal, if it is one. What was just booted out may be there for a while, which gives error 5."""
        answer = Finished(0, "", "")

        def accepted() -> bool:
            nonlocal answer
            answer = _ask("bootstrap", domain, str(self.file))
            return answer.code != INPUT_OUTPUT

        if comes_true(accepted, BUSY_SECONDS) and answer.code in (0, ALREADY):
            return None
        return answer

    def unload(self) -> None:
        """Boot it out: launchd sends SIGTERM and waits; the command may return before that, so it is looked for."""
        where = self.state().where
        if not where:
            return
        answer = _ask("bootout", where, seconds=END_SECONDS)
        if answer.code not in (0, IN_PROGRESS, NO_SUCH_PROCESS, NO_SUCH_SERVICE):
            raise _failed("bootout", answer)
        if not comes_true(lambda: not self.state().loaded, END_SECONDS):
            raise ProgramFailed(
                f"{where} has not ended {END_SECONDS:g} s after it was asked to.",
                where=where,
                remedy="`qlora logs` says what it waits for; try again, or restart the Mac.",
            )

    def start(self) -> None:
        """Start it; nothing if it runs."""
        state = self.state()
        if not state.loaded:
            self.load()
            state = self.state()
        if not state.running:
            answer = _ask("kickstart", state.where)
            if answer.code not in (0, ALREADY):
                raise _failed("kickstart", answer)

    def stop(self) -> None:
        """Boot it out, since launchd would start it again at once; the file stays, for the next login."""
        self.unload()

    def restart(self) -> None:
        """SIGTERM, so that the running job gets its checkpoint, and started again without launchd's ten seconds.

        `kickstart -k` would be one call, and nobody says how long it lets a process stop in order.
        """
        before = self.state()
        if before.pid is not None:
            answer = _ask("kill", "SIGTERM", before.where)
            if answer.code not in (0, NO_SUCH_PROCESS, NO_SUCH_SERVICE):
                raise _failed("kill", answer)
            if not comes_true(lambda: self.state().pid != before.pid, END_SECONDS):
                raise ProgramFailed(
                    f"Process {before.pid} has not ended {END_SECONDS:g} s after it was asked to.",
                    where=before.where,
                    remedy="`qlora logs` says what it waits for; then `qlorad stop` and `qlorad start`.",
                )
        self.start()

    def _domains(self) -> list[str]:
        """Where the service may be, the better first: an agent with a session can reach the display's services."""
        return ["system"] if self._headless else [f"gui/{os.getuid()}", f"user/{os.getuid()}"]


def parse_state(text: str, where: str) -> ServiceState:
    """How a service stands, from what `launchctl print` says of it."""
    found = dict(_TOP_LEVEL.findall(text))
    pid = found.get("pid", "")
    code = found.get("last exit code", "")
    signal = _SIGNAL.search(found.get("last terminating signal", ""))
    leading = re.match(r"-?\d+", code)  # `0`, `78: EX_CONFIG`, `(never exited)`
    last = -int(signal[1]) if signal else int(leading[0]) if leading else None
    is_running = found.get("state") == "running"
    return ServiceState(True, is_running, int(pid) if pid.isdigit() and is_running else None, last, where)


def _ask(*arguments: str, seconds: float = SECONDS) -> Finished:
    return run(["launchctl", *arguments], timeout=seconds)


def _failed(verb: str, answer: Finished, remedy: str | None = None) -> ProgramFailed:
    return ProgramFailed(
        f"`launchctl {verb}` refused with {answer.code}: {answer.said}", where="launchctl", remedy=remedy
    )
