"""However a job arrives in the watched folder, it runs exactly once."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from qlora_engine.job.states import State
from support.service import Daemon, wait_until, write_rows


def test_every_way_to_drop_a_job_gives_exactly_one(shared: Daemon) -> None:
    """People copy, download and save from editors; a half-read file or a job run twice wastes a night."""
    jobs, text = shared.home.jobs, shared.text(iters=1)
    elsewhere = shared.home.path / "copied.yaml"
    elsewhere.write_text(shared.text(iters=1, name="copied"))
    shutil.copy(elsewhere, jobs / "copied.yaml")
    with (jobs / "slow.yaml").open("w") as file:  # bytes trickle in, with pauses longer than the settling time
        for start in range(0, len(text), 40):
            file.write(text[start : start + 40])
            file.flush()
            time.sleep(0.1 if start else 0.8)
    (jobs / "4913").touch()  # as vim does
    (jobs / ".edited.yaml.swp").write_text("b0VIM")
    (jobs / "edited.yaml~").write_text(text)
    (jobs / ".edited.tmp").write_text(shared.text(iters=1, name="edited"))
    (jobs / ".edited.tmp").rename(jobs / "edited.yaml")
    (jobs / "4913").unlink()
    shared.drop_folder("folder", iters=1)
    write_rows(jobs / "late" / "data")  # the data first, the job file a moment later
    time.sleep(0.5)
    (jobs / "late" / "job.yaml").write_text(shared.text(iters=1, data="data", name="late"))
    names = {"copied", "slow", "edited", "folder", "late"}
    for name in names:
        assert shared.wait_for_state(name, State.DONE).attempt == 1
    assert {job.name for job in shared.jobs()} == names
    assert len(shared.events("training.started")) == len(names)
    assert sorted(path.name for path in jobs.iterdir()) == [
        ".edited.yaml.swp", ".taking", "accepted", "edited.yaml~", "rejected",
    ]  # fmt: skip
    assert not list(shared.home.rejected.iterdir())
    assert not list(shared.home.taking.iterdir())


def test_what_was_dropped_is_found_under_the_jobs_id(shared: Daemon) -> None:
    """The data of a dropped folder is read from where it lies then, and the folder is the user's to keep."""
    shared.drop_folder("mine", iters=1)
    shared.drop("single.yaml", shared.text(iters=1))
    folder, single = shared.wait_for_state("mine", State.DONE), shared.wait_for_state("single", State.DONE)
    kept = shared.home.accepted / folder.id
    assert sorted(path.name for path in kept.iterdir()) == ["data", "job.yaml"]
    assert str(kept / "data" / "train.jsonl") in shared.home.run(folder.id).spec.read_text()
    assert (shared.home.accepted / single.id / "single.yaml").exists()
    submitted = shared.home.run(single.id).job_file()
    assert submitted is not None
    assert submitted.read_text() == shared.text(iters=1)


def test_the_same_name_twice_is_two_jobs(shared: Daemon) -> None:
    """Dropping a changed job again under its old name is how people work."""
    shared.drop("again.yaml", shared.text(iters=1))
    wait_until("it is taken", lambda: not (shared.home.jobs / "again.yaml").exists())
    shared.drop("again.yaml", shared.text(iters=2))
    wait_until("both are done", lambda: states(shared, "again") == [State.DONE] * 2)


def states(daemon: Daemon, name: str) -> list[State]:
    return [job.state for job in daemon.jobs() if job.name == name]


def test_a_folder_deleted_and_made_again_is_watched_again(shared: Daemon) -> None:
    """Somebody tidies up; watchfiles then goes silent without an error."""
    shutil.rmtree(shared.home.jobs)
    wait_until("it is made again", shared.home.jobs.is_dir)
    wait_until("it is watched again", lambda: len(shared.events("inbox.watching")) == 2)
    shared.drop("after.yaml", shared.text(iters=1))
    shared.wait_for_state("after", State.DONE)


def test_files_dropped_while_no_daemon_runs_are_taken_at_its_start(daemon: Daemon) -> None:
    """The folder is the mailbox; it takes letters at any hour."""
    daemon.drop("early.yaml", daemon.text(iters=1))
    daemon.start()
    daemon.wait_for_state("early", State.DONE)


def test_a_name_may_be_anything_and_does_nothing_to_a_terminal(shared: Daemon) -> None:
    """A stranger's file is dropped and its job listed; its name is printed in every view, and in rejected/."""
    jobs = os.fsencode(shared.home.jobs)
    names = [b"\xff\xfe.yaml", b"\x1b[31mred\x07.yaml", b"new\nline.yaml", "\u202eedoc.yaml".encode()]
    for number, name in enumerate(names, 1):
        Path(os.fsdecode(jobs + b"/" + name)).write_text(shared.text(iters=number, seed=0))
    bad = [b"bad\xff.yaml", b"bad\x1b[2J.yaml"]
    for name in bad:
        Path(os.fsdecode(jobs + b"/" + name)).write_text("iterz: 1")
    ids = "-job", "-red", "-new-line", "-edoc"
    wait_until(
        "each is a job",
        lambda: all(any(job.id.endswith(end) and job.is_final for job in shared.jobs()) for end in ids),
    )
    assert all(job.name.isprintable() for job in shared.jobs())
    rejected = os.fsencode(shared.home.rejected)
    for name in bad:
        path = Path(os.fsdecode(rejected + b"/" + name + b".txt"))
        wait_until(f"{name!r} is rejected", path.exists)
        assert path.read_text().replace("\n", "").isprintable()
        assert "iterz" in path.read_text()
        path.unlink()
        path.with_suffix("").unlink()


def test_a_file_that_is_held_open_waits(shared: Daemon) -> None:
    """A copy that stalls for longer than the settling time is still being written."""
    path: Path = shared.home.jobs / "open.yaml"
    with path.open("w") as file:
        file.write(shared.text(iters=1))
        file.flush()
        time.sleep(1.5)  # five times the settling time
        assert path.exists()
    shared.wait_for_state("open", State.DONE)
