"""The daemon as a service: installed, updated, started, stopped and removed, until it answers or is gone."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine.host.installed import MANAGERS, manager_here, manager_of
from qlora_engine.host.polling import comes_true
from qlora_engine.host.service import STOP_SECONDS, ServiceManager, define, label_of
from qlora_engine.job import durable
from qlora_engine.job.errors import DaemonUnavailable, NotAllowed, QloradError, ServiceMissing
from qlora_engine.job.folder import Home
from qlora_engine.job.lock import LockHeld, acquire, holder_of
from qlora_engine.job.service_status import ServiceStatus
from qlora_engine.job.standing import standing
from qlora_worker.settings import KNOWN, PREFIX, SECRET

ANSWER_SECONDS = 60.0  # imports, Valkey's file, ten thousand run folders
FILE_MODE = 0o600  # it may hold the password of a Redis, and tokens of whom to notify
Say = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    """The service of a home on this system.

    Args:
        home: that it serves.
        manager: launchd or systemd.
        say: is told what is done.
    """

    home: Home
    manager: ServiceManager
    say: Say

    @classmethod
    def to_install(cls, home: Home, say: Say, *, user: str | None) -> Service:
        """One that may not be there yet.

        Args:
            home: that it is to serve.
            say: is told what is done.
            user: for one that needs no login: whose it is.

        Raises:
            ServiceMissing: this system has neither launchd nor systemd.
            NotAllowed: it is somebody else's to install.
        """
        manager = manager_here(home, user)
        if manager is None:
            raise ServiceMissing(
                "This system has neither launchd nor systemd.",
                remedy="Run `qlorad` under the supervisor that it has: it stays in the foreground and ends on SIGTERM.",
            )
        if user is not None and os.geteuid() != 0:
            raise NotAllowed(
                "Only root can install a service that runs without a login.",
                where=str(manager.file.parent),
                remedy=f"sudo {sys.executable} -m qlora_daemon install --headless --user {user}",
            )
        if user is None and "SUDO_USER" in os.environ:
            raise NotAllowed(
                "An agent belongs to the user who logs in, and sudo made you another one.",
                where=str(manager.file.parent),
                remedy="Run `qlorad install` without sudo, or with --headless for a service that needs no login.",
            )
        return cls(home, manager, say)

    @classmethod
    def installed(cls, home: Home, say: Say) -> Service:
        """The one that is there.

        Raises:
            ServiceMissing: none is.
        """
        manager = manager_of(home)
        if manager is None:
            raise ServiceMissing(
                "qlorad is not installed as a service here.",
                where=str(home.path),
                remedy="Install it: qlorad install. Or run it in this terminal: qlorad",
            )
        return cls(home, manager, say)

    def install(self, settings: Mapping[str, str], *, user: str | None) -> None:
        """Write its file, make the folders, and start it, or start it anew; returns when it answers.

        Args:
            settings: the variables that it is to have.
            user: whose it is, for one that needs no login.

        Raises:
            QloradError: the manager refuses, another daemon serves the home, or it does not answer.
        """
        definition = define(self.home, settings, user=user)
        content, file = self.manager.content(definition), self.manager.file
        state = self.manager.state()
        self._refuse_another(state.pid)
        self.home.make()
        if user is not None:
            self._give_home_to(user)
        if state.running:
            self.say("Stopping the service; a job that trains is saved at a checkpoint and goes on afterwards …")
        self.manager.unload()
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(file, content, mode=FILE_MODE)
        self.say(f"Wrote {file}")
        self.manager.load()
        self.manager.start()
        self.wait_until_it_answers()

    def uninstall(self, *, delete_home: bool = False) -> None:
        """Stop it in order and remove its file; jobs, runs and models stay.

        Args:
            delete_home: they do not.

        Raises:
            DaemonUnavailable: the home is to be deleted, and a daemon that is not the service's serves it.
        """
        if delete_home:
            self._refuse_another(self.manager.state().pid)
        self.manager.unload()
        if not delete_home:
            self._remove_file()
            return
        try:
            held = acquire(self.home.daemon_lock, {"pid": os.getpid()}, wait=STOP_SECONDS)
        except LockHeld as taken:  # one was started after the look above
            raise self._another(taken.holder) from None
        with held:  # no daemon begins in a home that goes away
            self._remove_file()
            _delete(self.home)

    def _remove_file(self) -> None:
        self.manager.file.unlink(missing_ok=True)
        self.say(f"Removed {self.manager.file}")

    def start(self) -> None:
        """Start it; returns when it answers."""
        self._refuse_another(self.manager.state().pid)
        self.manager.start()
        self.wait_until_it_answers()

    def stop(self) -> None:
        """Stop it in order; returns when it has ended."""
        self.manager.stop()
        if not comes_true(lambda: holder_of(self.home.daemon_lock) is None, STOP_SECONDS):
            raise DaemonUnavailable(
                "The service is stopped, and a daemon serves the home all the same.",
                where=str(self.home.path),
                remedy="It was started in a terminal: stop it there with Ctrl-C.",
            )

    def restart(self) -> None:
        """Stop it in order and start it again; returns when it answers. The running job goes on."""
        self._refuse_another(self.manager.state().pid)
        self.manager.restart()
        self.wait_until_it_answers()

    def wait_until_it_answers(self) -> None:
        """Until the daemon of this service has its queue and its children.

        Raises:
            DaemonUnavailable: it does not come to that.
        """
        if not comes_true(self._answers, ANSWER_SECONDS):
            state = self.manager.state()
            how = f"; it last ended with {state.last_exit}" if state.last_exit is not None else ""
            raise DaemonUnavailable(
                f"The service was started and did not answer within {ANSWER_SECONDS:g} s{how}.",
                where=str(self.home.path / "logs"),
                remedy="`qlora logs` and service.err there say why; `qlora doctor` looks at the machine.",
            )

    def _answers(self) -> bool:
        pid = self.manager.state().pid
        found = standing(self.home)
        if pid is None or found.said is None or found.said.pid != pid:
            return False
        return found.said.queue_answers and bool(found.said.children) and found.exit_code == 0

    def _refuse_another(self, ours: int | None) -> None:
        """A daemon in a terminal would keep the service from starting."""
        holder = holder_of(self.home.daemon_lock)
        if holder is not None and holder.get("pid") != ours:
            raise self._another(holder)

    def _another(self, holder: Mapping[str, Any]) -> DaemonUnavailable:
        status = ServiceStatus.load(self.home.status)
        since = f" since {status.started:%Y-%m-%d %H:%M}" if status and status.pid == holder.get("pid") else ""
        return DaemonUnavailable(
            f"Another daemon serves this home{since} (process {holder.get('pid', 'unknown')}).",
            where=str(self.home.path),
            remedy="Stop it first: Ctrl-C in its terminal. A job that trains is saved and goes on afterwards.",
        )

    def _give_home_to(self, user: str) -> None:
        """Root has just made folders that the service must write to."""
        folders = (self.home.path, self.home.jobs, self.home.taking, self.home.accepted, self.home.rejected,
                   self.home.runs, self.home.logs, self.home.state)  # fmt: skip
        for folder in folders:
            shutil.chown(folder, user)


def _delete(home: Home) -> None:
    """The lock goes last: until then a daemon that is started finds it taken."""
    path = home.path.resolve()  # it may be a link to another disk
    for entry in path.iterdir():
        if entry.name == home.state.name:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    shutil.rmtree(path)
    if home.path.is_symlink():
        home.path.unlink()


def settings_in_force(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings of this shell, which the service is to have, too; but the home, which has a place of its own."""
    return {name: environment[name] for name in sorted(KNOWN & environment.keys() - {f"{PREFIX}HOME"})}


def text_for(manager: str, home: Home, settings: Mapping[str, str], *, user: str | None) -> str:
    """The plist or unit as `install` would write it, its secrets left out.

    Args:
        manager: `launchd` or `systemd`, whichever this system has.
        home: that it is to serve.
        settings: that it is to have.
        user: for one that needs no login.
    """
    shown = {name: value if name not in SECRET else "(as set in the shell)" for name, value in settings.items()}
    made = MANAGERS[manager](label_of(home, user), headless=user is not None)
    return made.content(define(home, shown, user=user)).decode()


def user_of(headless: bool, named: str | None) -> str | None:
    """Whose a service without a login is: the one named, or who called sudo.

    Raises:
        QloradError: there is no such user.
    """
    if not headless:
        return None
    user = named or os.environ.get("SUDO_USER") or _me()
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise QloradError(f"There is no user {user!r:.60}.", where="--user", remedy="Name one that exists.") from None
    return user


def home_of(user: str | None) -> Path | None:
    """The usual home of somebody else's service; None for one's own, and for nobody's."""
    if user is None or user == _me():
        return None
    try:
        return Path(pwd.getpwnam(user).pw_dir) / "qlora"
    except KeyError:
        return None


def _me() -> str:
    return pwd.getpwuid(os.getuid()).pw_name
