"""Getting rid of folders so that none is ever half there: first renamed, in a moment, then deleted, in its own time.

Whoever may change a home's jobs renames: the daemon, or without one a client that holds the daemon's lock. Deleting
what was renamed is anybody's: nothing else looks at these names.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qlora_engine.job import durable
from qlora_engine.job.cleaning import Part, named_by_others, why_it_stays
from qlora_engine.job.folder import JOB_ID, Home
from qlora_engine.job.record import JobRecord

REMOVED = ".removed-"


@dataclass(frozen=True)
class Disposed:
    """What became of a wish: the jobs of which a part is gone, and why others stay."""

    gone: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def dispose(
    home: Home, jobs: Mapping[str, JobRecord], unreadable: Iterable[str], wanted: Collection[str], part: Part
) -> Disposed:
    """Take a part of jobs out of its place, unless something speaks against it by now.

    Args:
        home: whose jobs the caller may change.
        jobs: all of them, as they are now; one that is wanted and not among them has gone already.
        unreadable: run folders whose record cannot be read.
        wanted: ids.
        part: what goes.

    Raises:
        OSError: one cannot be renamed; those before it have gone.
    """
    named = named_by_others(home, jobs.values(), unreadable)
    disposed = Disposed()
    left = Counter(job.group for job in jobs.values() if job.group is not None)
    try:
        for job in (jobs[job_id] for job_id in dict.fromkeys(wanted) if job_id in jobs):
            if (why := why_it_stays(job, part, named)) is not None:
                disposed.kept[job.id] = why
            else:
                if part is Part.RUN and job.group is not None:
                    left[job.group] -= 1
                shared = job.group is not None and left[job.group] > 0
                _set_aside(home, job.id, part, dropped=None if shared else job.submitted_as)
                disposed.gone.append(job.id)
    finally:
        for folder in (home.runs, home.accepted):
            durable.sync_folder(folder)
    return disposed


def _set_aside(home: Home, job_id: str, part: Part, *, dropped: str | None) -> None:
    """The run folder goes first: a kill in between leaves a dropped file without its job, which `orphans` finds.

    Args:
        dropped: the name of what was dropped, if no other job of a sweep needs it.
    """
    if part is Part.CHECKPOINTS:
        set_aside(home.run(job_id).checkpoints, home.runs / f"{job_id}.checkpoints")
    else:
        set_aside(home.run(job_id).path)
        if dropped is not None:
            set_aside(home.accepted / dropped)


def set_aside(path: Path, called: Path | None = None) -> None:
    """Give a file or folder a name that nothing looks at, in the folder that it lies in or in that of `called`.

    Raises:
        OSError: it cannot be renamed.
    """
    if os.path.lexists(path):
        target = called or path
        target = target.with_name(f"{REMOVED}{target.name}")
        if os.path.lexists(target):  # of an earlier time that was cut short
            target = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        path.rename(target)


def leftovers(home: Home) -> Iterator[Path]:
    """What was set aside and is not deleted yet."""
    for folder in (home.runs, home.accepted, home.rejected, home.models):
        if folder.is_dir():
            yield from (entry for entry in folder.iterdir() if entry.name.startswith(REMOVED))


def dropped_in(home: Home) -> list[Path]:
    """What was dropped in the watched folder, by the id of its job or sweep. List it before records: see `orphans`."""
    if not home.accepted.is_dir():
        return []
    return sorted(entry for entry in home.accepted.iterdir() if JOB_ID.fullmatch(entry.name))


def orphans(
    home: Home, entries: Iterable[Path], jobs: Iterable[JobRecord], unreadable: Collection[str] = ()
) -> list[Path]:
    """What was dropped for jobs whose run folders are gone, since somebody deleted them say.

    Args:
        home: where it lies.
        entries: `dropped_in` as it was before `jobs` was read. Run folders appear before what was dropped for them
            moves here, so what is accepted meanwhile is either not among these or has its jobs among those.
        jobs: all that can be read, which name their sweeps.
        unreadable: run folders whose record cannot be read, and that may be of any sweep.
    """
    if not home.runs.is_dir():
        return []
    groups = {job.group for job in jobs}
    return [
        entry for entry in entries
        if not home.run(entry.name).path.exists() and entry.name not in groups
        and not any(name.startswith(entry.name) for name in unreadable)
    ]  # fmt: skip


def delete(path: Path) -> None:
    """Delete what has no name any more that somebody looks at. What another deletes meanwhile is as good.

    Raises:
        OSError: a part of it cannot be deleted; it is tried again with the next cleaning.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def bytes_of(path: Path) -> int:
    """The room that a file or folder takes on the disk, bytes; what vanishes meanwhile takes none."""
    total = 0
    folders = [path] if path.is_dir() and not path.is_symlink() else []
    if not folders:
        with contextlib.suppress(FileNotFoundError):
            total = path.lstat().st_blocks * 512
    while folders:
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
    return total
