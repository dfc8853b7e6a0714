"""systemctl(1): the one place that knows its words."""

from __future__ import annotations

from pathlib import Path

from qlora_engine.host import systemd_unit
from qlora_engine.host.program import Finished, run
from qlora_engine.host.service import STOP_SECONDS, ServiceDefinition, ServiceState
from qlora_engine.job.errors import ProgramFailed

SECONDS = 30.0
END_SECONDS = STOP_SECONDS + 15.0
_KILLED = "2"  # of ExecMainCode: CLD_KILLED; CLD_EXITED is 1, CLD_DUMPED 3


class Systemd:
    """systemd, for one service.

    Args:
        label: of the service.
        headless: a service of the machine rather than of the user.
        folder: where its file belongs. [default: where systemd looks for such]
    """

    name = "systemd"

    def __init__(self, label: str, *, headless: bool = False, folder: Path | None = None) -> None:
        self._label, self._headless = label, headless
        usual = Path("/etc/systemd/system") if headless else Path("~/.config/systemd/user").expanduser()
        self._folder = folder or usual

    @property
    def file(self) -> Path:
        """Where the unit belongs."""
        return self._folder / f"{self._label}.service"

    def content(self, definition: ServiceDefinition) -> bytes:
        """The unit."""
        return systemd_unit.render(definition)

    def read(self, content: bytes) -> ServiceDefinition:
        """What it was made from. Raises `ValueError` for anything else."""
        return systemd_unit.read(content, self._label)

    def state(self) -> ServiceState:
        """What systemd knows."""
        names = ("LoadState", "ActiveState", "MainPID", "ExecMainCode", "ExecMainStatus")
        answer = self._must("show", self._unit, f"--property={','.join(names)}")
        found = dict(line.split("=", 1) for line in answer.out.splitlines() if "=" in line)
        pid, status = int(found.get("MainPID", "0")), int(found.get("ExecMainStatus", "0"))
        code = found.get("ExecMainCode", "0")
        last = None if code == "0" else -status if code in (_KILLED, "3") else status
        return ServiceState(
            loaded=found.get("LoadState") == "loaded",
            running=pid > 0,
            pid=pid or None,
            last_exit=last,
            where=f"systemctl {'' if self._headless else '--user '}{self._unit}",
        )

    def load(self) -> None:
        """Have the file read, the service started, and started again with the machine or the user's session."""
        self._must("daemon-reload")
        self._must("enable", self._unit)
        self._must("restart", self._unit, seconds=END_SECONDS)

    def unload(self) -> None:
        """Stop it in order and forget it; returns when it has ended."""
        if self.state().loaded:
            self._must("disable", "--now", self._unit, seconds=END_SECONDS)

    def start(self) -> None:
        """Start it; nothing if it runs."""
        self._must("start", self._unit)

    def stop(self) -> None:
        """Stop it in order until it is started; returns when it has ended."""
        self._must("stop", self._unit, seconds=END_SECONDS)

    def restart(self) -> None:
        """Stop it in order and start it again."""
        self._must("restart", self._unit, seconds=END_SECONDS)

    @property
    def _unit(self) -> str:
        return f"{self._label}.service"

    def _must(self, *arguments: str, seconds: float = SECONDS) -> Finished:
        scope = () if self._headless else ("--user",)
        answer = run(["systemctl", *scope, "--no-pager", *arguments], timeout=seconds)
        if answer.code != 0:
            raise ProgramFailed(
                f"`systemctl {' '.join((*scope, arguments[0]))}` refused with {answer.code}: {answer.said}",
                where="systemctl",
                remedy=_remedy(answer),
            )
        return answer


def _remedy(answer: Finished) -> str:
    if "bus" in answer.said or "not been booted with systemd" in answer.said:
        return (
            "Nobody's systemd answers here: log in as the user (not by su or sudo), after `loginctl enable-linger`; "
            "or run `qlorad` in a terminal."
        )
    return "`journalctl --user -u qlorad` may say more."
