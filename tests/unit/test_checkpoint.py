"""Checkpoints are whole or passed over, whatever happened to their files."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from qlora_engine.job import durable
from qlora_engine.job.errors import CheckpointDamaged
from qlora_engine.training import checkpoint
from qlora_engine.training.tensor_file import on_host

NAMES = (checkpoint.ARRAYS, checkpoint.STATE, checkpoint.MANIFEST)


def arrays(step: int) -> dict[str, mx.array]:
    return {
        "masters.a": mx.full((3, 4), step, mx.float32),
        "optimizer.step": mx.array(step, mx.uint64),
        "optimizer.empty": mx.zeros((0,)),
    }


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(folder, step, on_host(arrays(step)), {"progress": {"step": step, "loss": 0.1 + 0.2}})


def find(folder: Path) -> tuple[int | None, list[int]]:
    """The step of the newest whole checkpoint, and the steps of those passed over."""
    damaged: list[int] = []

    def note(path: Path, error: CheckpointDamaged) -> None:
        assert error.what
        damaged.append(int(path.name.removeprefix("step-")))

    found = checkpoint.newest(folder, note)
    if found is None:
        return None, damaged
    here, state = found
    assert state["progress"] == {"step": here.step, "loss": 0.1 + 0.2}
    loaded = checkpoint.load_arrays(here.path)
    for name, array in arrays(here.step).items():
        assert loaded[name].dtype == array.dtype
        assert np.array_equal(np.array(loaded[name]), np.array(array))
    return here.step, damaged


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    """To the bit, types and empty arrays included."""
    assert find(tmp_path / "none") == (None, [])
    save(tmp_path, 2, 10, 4)
    assert find(tmp_path) == (10, [])
    assert [c.step for c in checkpoint.listed(tmp_path)] == [2, 4, 10]


def test_steps_beyond_six_digits_are_still_ordered(tmp_path: Path) -> None:
    """By number, not by name."""
    save(tmp_path, 999_999, 1_000_000)
    assert find(tmp_path) == (1_000_000, [])


def damage(file: Path, draw: random.Random) -> None:
    """Do one kind of harm to a file, as a disk, a power cut or a person would."""
    content = bytearray(file.read_bytes())
    match draw.choice(["cut", "flip", "remove", "empty", "longer", "zeros", "folder"]):
        case "cut":
            file.write_bytes(content[: draw.randrange(len(content))])
        case "flip":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            file.write_bytes(content)
        case "remove":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "longer":
            file.write_bytes(content + b"\0")
        case "zeros":
            file.write_bytes(bytes(len(content)))
        case "folder":
            file.unlink()
            file.mkdir()


@pytest.mark.parametrize("seed", range(200))
def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_is_used(quick_path: Path, seed: int) -> None:
    """Going on from a part of a checkpoint would train something that nobody described, without a word."""
    draw = random.Random(seed)
    save(quick_path, 4, 8)
    name = draw.choice(NAMES)
    damage(quick_path / "step-000008" / name, draw)
    assert find(quick_path) == (4, [8])


def test_every_single_bit_of_the_manifest_matters(quick_path: Path) -> None:
    """What says whether the rest is whole must itself be whole."""
    save(quick_path, 4)
    manifest = quick_path / "step-000004" / checkpoint.MANIFEST
    content = manifest.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(flipped)
        assert checkpoint.newest(quick_path, lambda *_: None) is None, bytes(flipped)
    manifest.write_bytes(content)
    assert find(quick_path) == (4, [])


def test_when_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    """The run then begins again, and each one was reported."""
    save(tmp_path, 4, 8)
    for step in (4, 8):
        (tmp_path / f"step-{step:06d}" / checkpoint.ARRAYS).write_bytes(b"")
    assert find(tmp_path) == (None, [8, 4])


def test_a_checkpoint_of_another_format_is_passed_over(tmp_path: Path) -> None:
    """A later version's checkpoint may mean something else by the same names."""
    save(tmp_path, 4, 8)
    folder = tmp_path / "step-000008"
    state = json.loads((folder / checkpoint.STATE).read_bytes())
    durable.write_json(folder / checkpoint.STATE, state | {"format": checkpoint.FORMAT + 1})
    manifest = json.loads((folder / checkpoint.MANIFEST).read_bytes())
    manifest["files"][checkpoint.STATE] = checkpoint._describe(folder / checkpoint.STATE)
    durable.write_json(folder / checkpoint.MANIFEST, manifest)
    assert find(tmp_path) == (4, [8])


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    """A resumed run reaches the same steps again."""
    save(tmp_path, 4, 8)
    (tmp_path / "step-000008" / checkpoint.STATE).write_bytes(b"")
    save(tmp_path, 8)
    assert find(tmp_path) == (8, [])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-000004", "step-000008"]


def test_a_kill_between_two_checkpoints_of_one_step_leaves_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a rollback there may be no other, and a run of days would begin again."""
    save(tmp_path, 4)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(durable, "move", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 4)
    assert find(tmp_path) == (None, [])
    monkeypatch.undo()
    checkpoint.tidy(tmp_path)
    assert find(tmp_path) == (4, [])
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000004"]


def test_unfinished_folders_and_strangers_are_not_seen(tmp_path: Path) -> None:
    """A name is given only to what is complete."""
    save(tmp_path, 4)
    for name in (f"{durable.TEMPORARY}step-000008", "step-", "step-x", "step-8.bak", "notes"):
        shutil.copytree(tmp_path / "step-000004", tmp_path / name)
    assert find(tmp_path) == (4, [])


def test_pruning_keeps_the_newest_three_and_those_that_are_needed(tmp_path: Path) -> None:
    """Disk is finite; the best checkpoint is what `keep: best` takes, others are what a rollback goes to."""
    save(tmp_path, 1, 2, 3, 4, 5, 6)
    checkpoint.prune(tmp_path, {2, None})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [f"step-00000{step}" for step in (2, 4, 5, 6)]
    checkpoint.prune(tmp_path, ())
    assert [c.step for c in checkpoint.listed(tmp_path)] == [4, 5, 6]
    checkpoint.prune(tmp_path / "none", ())


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that fails may cost what it would have saved, and nothing else."""
    save(tmp_path, 4)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync_file", full)
    with pytest.raises(OSError, match="space"):
        save(tmp_path, 8)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000004"]
    assert find(tmp_path) == (4, [])


SAVER = """
import sys
import mlx.core as mx
from pathlib import Path
from qlora_engine.training import checkpoint
from qlora_engine.training.tensor_file import on_host
folder = Path(sys.argv[1])
step = 0
while True:
    step += 1
    made = {"masters.a": mx.full((3, 4), step, mx.float32), "optimizer.step": mx.array(step, mx.uint64),
            "optimizer.empty": mx.zeros((0,))}
    checkpoint.save(folder, step, on_host(made), {"progress": {"step": step, "loss": 0.1 + 0.2}})
    print(step, flush=True)
    checkpoint.prune(folder, ())
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment_leaves_no_partial_checkpoint(tmp_path: Path, seed: int) -> None:
    """What is acknowledged is there; what has its name is whole."""
    draw = random.Random(seed)
    process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        wanted = draw.randrange(4, 12)
        said = 0
        while said < wanted:
            said = int(process.stdout.readline())
        for _ in range(draw.randrange(20_000)):  # somewhere inside the next save, without a clock
            os.getppid()
    finally:
        process.send_signal(signal.SIGKILL)
        rest = process.communicate(timeout=10)[0].split()
    said = max([said, *map(int, rest)])
    found, damaged = find(tmp_path)
    assert damaged == []
    assert found is not None
    assert said <= found <= said + 1
    save(tmp_path, found + 1)  # and what was left lying is no obstacle
    assert find(tmp_path) == (found + 1, [])
