"""A sweep dropped as a folder trains with the real engine: its poor job is ended, and the best is shown first."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from qlora_client.api import Client
from qlora_client.cli import main
from qlora_engine.job.states import State
from support import tiny
from support.service import REAL, daemon_in, wait_until

RATES = [1e-3, 1e-9, 3e-3, 2e-3]  # the second learns nothing
FIRST, STEPS = 60, 300  # the first validation, and so many steps after it that the end comes long after the stop


def shown(*arguments: str) -> str:
    """What `qlora` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(list(arguments)) == 0
    return out.getvalue()


def test_a_dropped_sweep_is_trained_ranked_and_rid_of_what_is_too_poor(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: one folder in the evening, one table in the morning."""
    keys = tiny.job(tiny.make_model(tmp_path / "model"), Path("data"), iters=STEPS, steps_per_eval=FIRST)
    keys |= {"sweep": {"grid": {"learning_rate": RATES}, "stop_worse_than": 0.5}}
    with daemon_in(home, module=REAL) as daemon:
        monkeypatch.setenv("QLORAD_HOME", str(home))
        daemon.start()
        dropped = daemon.home.jobs / ".poems"
        tiny.make_data(dropped / "data")
        tiny.write_job(dropped / "job.yaml", keys)
        dropped.rename(daemon.home.jobs / "poems")
        wait_until("it is accepted", lambda: len(daemon.jobs()) == len(RATES), 60)
        client = Client(home)
        wait_until("it has ended", lambda: client.group("poems").is_final, 120)
        group = client.group("poems")
        assert [path.name for path in daemon.home.accepted.iterdir()] == [group.id]
        by_rate = {one.job.settings["learning_rate"]: one for one in group.members}
        assert {rate: one.job.state for rate, one in by_rate.items()} == dict.fromkeys(RATES, State.DONE) | {
            1e-9: State.CANCELLED
        }
        poor = by_rate[1e-9]
        (ended,) = daemon.events("job.outdone")
        assert (ended["job"], ended["step"], ended["by"]) == (poor.job.id, FIRST, by_rate[1e-3].job.id)
        assert ended["best"] == by_rate[1e-3].validations[FIRST]
        assert f"at step {FIRST}" in poor.job.reason
        assert FIRST <= poor.job.checkpoint_step < STEPS, "it stopped at a checkpoint"
        assert group.best is not None
        assert group.best.best == min(one.best for one in group.members if one.best)
        assert group.members[-1] == poor
        table = shown("show", "poems").splitlines()
        assert table[3].split()[:3] == ["1", f"{group.best.label.partition('=')[2]}", "done"]
        assert json.loads(shown("show", "poems", "--json"))["jobs"][-1]["outdone_by"] == poor.job.outdone_by
