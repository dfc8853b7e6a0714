"""Whether a run that goes on computes what it would have computed without the stop, said when it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from qlora_client.progress import progress_of
from qlora_client.views import _resumed
from qlora_engine.job.errors import Exit
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.folder import Home, RunFolder
from qlora_engine.job.formats import NewerFormat
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.wording import describe
from qlora_engine.training import checkpoint
from qlora_engine.training.exactness import Exactness, compare
from qlora_engine.training.run import Outcome, train
from qlora_engine.training.stop import StopRequest
from support import tiny

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format-1"
SECOND = "20261123-122410-second"

THEN: dict[str, Any] = {
    "versions": {"python": "3.12.4", "mlx": "0.32.4", "mlx_lm": "0.32.2", "qlorad": "0.1.0"},
    "backend": "metal",
    "device": "Apple M3 Pro",
    "blas": None,
}


def now(**versions: str) -> dict[str, Any]:
    return THEN | {"versions": THEN["versions"] | versions}


@pytest.mark.parametrize(
    ("found", "exact", "changed"),
    [
        (THEN, True, ()),
        (now(python="3.12.5"), True, ("python 3.12.4 → 3.12.5",)),
        (now(python="3.13.0"), False, ("python 3.12.4 → 3.13.0",)),
        (now(mlx="0.32.5"), False, ("mlx 0.32.4 → 0.32.5",)),
        (now(mlx="0.32.5", python="3.12.5"), False, ("mlx 0.32.4 → 0.32.5", "python 3.12.4 → 3.12.5")),
        (now(mlx_lm="0.32.3"), False, ("mlx_lm 0.32.2 → 0.32.3",)),
        (now(qlorad="0.2.0"), False, ("qlorad 0.1.0 → 0.2.0",)),
        (THEN | {"device": "Apple M4"}, False, ("device Apple M3 Pro → Apple M4",)),
        (
            THEN | {"blas": {"threads": 4}},
            False,
            ("blas None → {'threads': 4}",),
        ),
    ],
)
def test_what_decides_rounding_makes_it_inexact_and_all_that_changed_is_named(
    found: dict[str, Any], exact: bool, changed: tuple[str, ...]
) -> None:
    """A person must be able to tell a run that may be compared bit by bit from one that may not."""
    assert compare(THEN, found) == Exactness(exact, changed)


def test_what_an_older_checkpoint_does_not_say_is_not_held_against_it() -> None:
    """It knew the versions alone."""
    assert compare({"versions": THEN["versions"]}, THEN | {"device": "another"}) == Exactness(True, ())
    assert compare({}, THEN) == Exactness(True, ())


def test_of_a_library_what_differs_is_named() -> None:
    """Not both descriptions in full, to be compared by eye."""
    then, later = ({"blas": {"library": "/lib/openblas.so", "threads": count}} for count in (2, 4))
    assert compare(then, later).changed == ("blas threads 2 → 4",)


# The stored run of format 1


class Stored:
    """The run of the fixture that stopped at a checkpoint, with the model and the data that it was made with."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(FIXTURE, folder)
        tiny.make_model(folder / "models" / "tiny")
        for file in folder.rglob("*.json"):
            file.write_bytes(file.read_bytes().replace(b"/srv/qlorad", str(folder).encode()))
        self.run: RunFolder = Home(folder).run(SECOND)
        self.newest = self.run.checkpoints / "step-000044"
        self.events: list[Event] = []
        self.sign()

    def change(self, **keys: Any) -> None:
        """Change what the checkpoint says of the process that wrote it."""
        path = self.newest / checkpoint.STATE
        path.write_text(json.dumps(json.loads(path.read_bytes()) | keys))
        self.sign()

    def sign(self, number: int = checkpoint.FORMAT) -> None:
        """Make the manifest fit again."""
        files = {name: checkpoint._describe(self.newest / name) for name in (checkpoint.ARRAYS, checkpoint.STATE)}
        manifest = {"format": number, "step": 44, "files": files}
        (self.newest / checkpoint.MANIFEST).write_text(json.dumps(manifest))

    def go(self) -> Outcome:
        log = EventLog([self.events.append])
        job, quiet = ResolvedJob.load(self.run.spec), EventLog([])
        return train(job, self.run, attempt=2, log=log, metrics=quiet, stop=StopRequest())

    @property
    def resumed(self) -> Event:
        (event,) = (event for event in self.events if event["event"] == "training.resumed")
        return event


@pytest.fixture
def stored(quick_path: Path) -> Iterator[Stored]:
    cache = mx.set_cache_limit(1 << 30)  # a run sets MLX's limits for its whole process, which other tests share
    yield Stored(quick_path / "home")
    mx.set_cache_limit(cache)


def test_a_run_of_format_1_goes_on_to_its_end(stored: Stored) -> None:
    """Whoever upgrades while a job waits loses none of it, and what it saves says all of the process that saved it."""
    assert stored.go() is Outcome.DONE
    assert stored.resumed["step"] == 44
    assert stored.events[-1]["step"] == 200
    said = checkpoint.check(checkpoint.listed(stored.run.checkpoints)[-1].path)
    assert {"versions", "backend", "device", "blas"} <= said.keys()


def test_a_resumed_run_says_whether_it_is_exact(stored: Stored) -> None:
    """In its events, in their words, and in `qlora show`."""
    versions = json.loads((stored.newest / checkpoint.STATE).read_bytes())["versions"]
    stored.change(versions=versions | {"mlx": "0.1.0"})
    stored.go()
    assert stored.resumed["exact"] is False
    (changed,) = stored.resumed["changed"]
    assert changed.startswith("mlx 0.1.0 → ")
    assert describe(stored.resumed).endswith(f"; rounding may differ from here on: {changed}")
    progress = progress_of(stored.events)
    assert progress.resumed == (44, False, changed)
    assert _resumed(*progress.resumed) == f"at step 44, rounding may differ from there on ({changed})"


def test_a_newer_checkpoint_is_refused_and_not_passed_over(stored: Stored) -> None:
    """Passing over it would start the job from nothing, and prune what was trained."""
    stored.change(format=checkpoint.FORMAT + 1)
    stored.sign(checkpoint.FORMAT + 1)
    with pytest.raises(NewerFormat, match="This checkpoint was made by a newer qlorad") as raised:
        stored.go()
    assert raised.value.exit_code == Exit.DATAERR
    assert stored.newest.is_dir()
