"""`qlora clean`: what can go, and having it go. While no daemon runs, this process does the daemon's part."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal

from qlora_client.records import Listing, list_records
from qlora_engine.job import kept_tokens, lock, model_store
from qlora_engine.job.cleaning import Part, Wish, named_by_others, plan, unused_models
from qlora_engine.job.disposal import bytes_of, delete, dispose, dropped_in, leftovers, orphans, set_aside
from qlora_engine.job.errors import DaemonUnavailable
from qlora_engine.job.folder import Home
from qlora_engine.job.models import installed
from qlora_engine.job.record import utc_now
from qlora_engine.job.text import size
from qlora_engine.job.unforeseen import refused_by_system
from qlora_worker.messages import MOST_CLEANED
from qlora_worker.requests import Requests
from qlora_worker.settings import Settings

Kind = Literal["run", "checkpoints", "left over", "model", "tokens"]
LOCK_SECONDS = 2.0  # to wait for whoever tests the daemon's lock, which takes an instant


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        jobs: whether anything of jobs goes; then `keep` or `older` says of which.
        part: how much of them.
        models, tokens: whether those that nothing uses go, too.
    """

    jobs: bool
    part: Part = Part.RUN
    keep: int | None = None
    older: timedelta | None = None
    models: bool = False
    tokens: bool = False


@dataclass(frozen=True)
class Item:
    """One thing that goes: a job's id, the name of a model or folder, and the room that it takes, bytes."""

    kind: Kind
    name: str
    bytes: int


@dataclass(frozen=True)
class Cleaning:
    """What goes, and what was meant and stays, with the reason."""

    items: tuple[Item, ...]
    kept: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """In all."""
        return sum(item.bytes for item in self.items)

    def names(self, *kinds: Kind) -> list[str]:
        """Of the items of these kinds."""
        return [item.name for item in self.items if item.kind in kinds]


def look(home: Home, wanted: Wanted) -> Cleaning:
    """What would go. Nothing is changed.

    Raises:
        OSError: a folder cannot be read.
    """
    entries, listing = dropped_in(home), list_records(home)  # in this order
    items, kept = [], dict[str, str]()
    if wanted.jobs:
        wish = Wish(wanted.part, wanted.keep, wanted.older)
        found = plan(listing.jobs, wish, named_by_others(home, listing.jobs, listing.unreadable), utc_now())
        items, kept = [_job_item(home, name, wanted.part) for name in found.jobs], dict(found.kept)
        if wanted.part is Part.CHECKPOINTS:
            items = [item for item in items if home.run(item.name).checkpoints.exists()]
        else:
            found_left = orphans(home, entries, listing.jobs, listing.unreadable)
            items += [Item("left over", entry.name, bytes_of(entry)) for entry in found_left]
    if wanted.models:
        gone = {item.name for item in items if item.kind == "run"}
        models, why = _unused_models(home, listing, gone)
        items += [Item("model", name, bytes_of(home.models / name)) for name in models]
        kept |= {"every model": why} if why else {}
    if wanted.tokens:
        items += [Item("tokens", entry.name, bytes_of(entry)) for entry in kept_tokens.unused(home.tokens)]
    return Cleaning(tuple(items), kept)


def carry_out(settings: Settings, found: Cleaning, wanted: Wanted) -> Cleaning:
    """Have go what `look` found, unless something speaks against it by now.

    Returns:
        What went, with the room that it took, and what stayed.

    Raises:
        DaemonUnavailable: the daemon runs and does not answer.
        SystemRefused: something cannot be renamed or deleted; the next cleaning goes on with it.
        ModelNotAdded: a model is just being added.
    """
    home, kept = settings.folders, dict(found.kept)
    try:
        jobs = found.names("run", "checkpoints")
        for start in range(0, len(jobs), MOST_CLEANED):
            kept |= _have_go(settings, jobs[start : start + MOST_CLEANED], wanted.part)
        if names := found.names("left over"):
            kept |= _set_aside_orphans(home, names)
        if models := found.names("model"):
            still = set(_unused_models(home, list_records(home), set())[0])
            kept |= {name: "a job uses it by now" for name in models if name not in still}
            model_store.take_out(home, (name for name in models if name in still))
        tokens = kept_tokens.take_out(home.tokens) if wanted.tokens else []
        for path in (*leftovers(home), *tokens):
            delete(path)
    except OSError as error:
        raise refused_by_system(error) from error
    return replace(found, items=tuple(item for item in found.items if item.name not in kept), kept=kept)


def _job_item(home: Home, job_id: str, part: Part) -> Item:
    run = home.run(job_id)
    if part is Part.CHECKPOINTS:
        return Item("checkpoints", job_id, bytes_of(run.checkpoints))
    return Item("run", job_id, bytes_of(run.path) + bytes_of(home.accepted / job_id))


def _unused_models(home: Home, listing: Listing, gone: set[str]) -> tuple[list[str], str | None]:
    """The models that no job that stays was made with; why none can be named, where a job does not say."""
    stay = [name for name in (*(job.id for job in listing.jobs), *listing.unreadable) if name not in gone]
    try:
        return unused_models(home, stay, [model.name for model in installed(home.path)]), None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        return [], f"a job does not say which it was made with ({error})"


def _set_aside_orphans(home: Home, names: Collection[str]) -> dict[str, str]:
    """Set aside what is still left over of these. Why some stay."""
    entries, listing = [entry for entry in dropped_in(home) if entry.name in names], list_records(home)
    still = orphans(home, entries, listing.jobs, listing.unreadable)
    for entry in still:
        set_aside(entry)
    return {entry.name: "a job needs it by now" for entry in entries if entry not in still}


def _have_go(settings: Settings, jobs: Sequence[str], part: Part) -> dict[str, str]:
    """Have the daemon do it, which alone may change jobs, or be it while none runs. Why some stay."""
    home = settings.folders
    try:
        answer = Requests.of(settings).ask("clean", {"jobs": list(jobs), "part": part})
    except DaemonUnavailable:
        if lock.holder_of(home.daemon_lock) is not None:
            raise
    else:
        answer.raise_if_refused()
        return dict(json.loads(answer.what or "{}"))
    with lock.held(home.daemon_lock, {"pid": os.getpid(), "cleans": True}, wait=LOCK_SECONDS):
        listing = list_records(home)  # as they are now that nobody can change them
        return dispose(home, {job.id: job for job in listing.jobs}, listing.unreadable, jobs, part).kept


def lines(found: Cleaning, *, gone: bool) -> Iterator[str]:
    """What goes or is gone, and what stays, for a person."""
    width = max((len(item.name) for item in found.items), default=0)
    for item in found.items:
        yield f"{item.name:{width}}  {item.kind:11}  {size(item.bytes)}"
    for name, why in found.kept.items():
        yield f"{name} stays: {why}"
    if not found.items:
        yield "Nothing of this can go."
    elif gone:
        yield f"{size(found.bytes)} freed."
    else:
        yield f"{size(found.bytes)} would be freed; without --dry-run they are."
