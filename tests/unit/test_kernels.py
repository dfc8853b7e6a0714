"""Kernels that MLX compiled for one job serve the next, and none that could be damaged."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from qlora_engine.job import kernels as module
from qlora_engine.job.errors import Exit
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.kernels import KernelCache
from qlora_worker.task import kept
from qlora_worker.training import TrainingProcess
from support.service import ROOT

FILES = {
    "mlx/1.2.3/cpu/libAdd.so": b"library",
    "mlx/1.2.3/cpu/Add.cpp": b"source",
    "mlx/1.2.3/ptx/gemm.ptx": b"cubin",
    "mlx/1.2.3/ptx/gemm.txt": b"gemm\t_Z4gemm\n",
    "mlx/1.2.3/ptx/gemm.cu": b"source",
    "other": b"a library's own",
}
KERNELS = {name: content for name, content in FILES.items() if Path(name).suffix in (".so", ".ptx", ".txt")}


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "kernels", "1.2.3", "cuda NVIDIA H100 80GB HBM3")


def attempt(tmp_path: Path, name: str, files: dict[str, bytes] = FILES) -> Path:
    """An attempt's own folder, with what MLX has left there."""
    folder = tmp_path / name
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_one_attempt_compiled_the_next_one_finds(tmp_path: Path, cache: KernelCache) -> None:
    """Where MLX looks for it, and without the sources, which nobody reads again."""
    assert cache.lend(tmp_path / "first") == 0
    assert cache.keep(attempt(tmp_path, "first")) == len(KERNELS)
    assert cache.lend(tmp_path / "second") == len(KERNELS)
    assert files_of(tmp_path / "second") == KERNELS


def test_what_is_new_comes_beside_what_is_known(tmp_path: Path, cache: KernelCache) -> None:
    """Another job has other shapes."""
    cache.keep(attempt(tmp_path, "first"))
    (second := tmp_path / "second").mkdir()
    cache.lend(second)
    assert cache.keep(second) == 0
    attempt(tmp_path, "second", {"mlx/1.2.3/ptx/other.ptx": b"more"})
    assert cache.keep(second) == 1
    cache.lend(tmp_path / "third")
    assert files_of(tmp_path / "third") == KERNELS | {"mlx/1.2.3/ptx/other.ptx": b"more"}


def test_a_kernel_runs_with_its_version_on_its_device(tmp_path: Path, cache: KernelCache) -> None:
    """A cubin of another GPU does not load. An older MLX's is never asked for again, another device's may be."""
    cache.keep(attempt(tmp_path, "first"))
    cpu = KernelCache(tmp_path / "kernels", "1.2.3", "cpu x86_64")
    assert cpu.lend(tmp_path / "second") == 0
    cpu.keep(attempt(tmp_path, "second"))
    assert cache.lend(tmp_path / "third") == len(KERNELS)
    newer = KernelCache(tmp_path / "kernels", "1.3.0", "cpu x86_64")
    assert newer.lend(tmp_path / "fourth") == 0
    newer.keep(attempt(tmp_path, "fourth", {"mlx/1.3.0/cpu/libAdd.so": b"library"}))
    assert os.listdir(tmp_path / "kernels") == ["1-3-0-cpu-x86-64"]  # noqa: PTH208


def test_a_disk_that_is_full_costs_nothing_that_was_kept(
    tmp_path: Path, cache: KernelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing half there."""
    cache.keep(attempt(tmp_path, "first"))

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "sync_folders", full)
    with pytest.raises(OSError, match="No space"):
        cache.keep(attempt(tmp_path, "second", {"mlx/1.2.3/ptx/other.ptx": b"more"}))
    assert len(os.listdir(tmp_path / "kernels")) == 1  # noqa: PTH208
    assert cache.lend(tmp_path / "third") == len(KERNELS)


def test_they_do_not_grow_without_end(tmp_path: Path, cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new shape leaves some; what is compiled anew costs less than a full disk."""
    cache.keep(attempt(tmp_path, "first"))
    monkeypatch.setattr(module, "MOST_BYTES", sum(map(len, KERNELS.values())))
    second = attempt(tmp_path, "second", KERNELS | {"mlx/1.2.3/ptx/other.ptx": b"more"})
    cache.keep(second)
    assert cache.lend(tmp_path / "third") == 0


def test_kernels_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, cache: KernelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs may lie on another disk than the cache."""

    def no_link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", no_link)
    cache.keep(attempt(tmp_path, "first"))
    cache.lend(tmp_path / "second")
    assert files_of(tmp_path / "second") == KERNELS


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        *[(end, True) for end in (Exit.OK, Exit.TEMPFAIL, Exit.DATAERR, -signal.SIGKILL, -signal.SIGTERM)],
        *[(end, False) for end in (Exit.SOFTWARE, -signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT)],
    ],
)
def test_a_crash_makes_all_be_compiled_again(
    tmp_path: Path, cache: KernelCache, monkeypatch: pytest.MonkeyPatch, end: int, kept: bool
) -> None:
    """A library that the disk has damaged would end every process of every job; and a kill was no fault of theirs."""
    cache.keep(attempt(tmp_path, "first"))
    monkeypatch.setenv("QLORA_TEST_END", str(int(end)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    with TrainingProcess(run, 1, {}, tmp_path / "kernels", task_module="support.ending_task") as training:
        training.record_exit()
    assert not run.temporary.exists()
    assert (cache.lend(tmp_path / "second") > 0) is kept


def test_an_attempt_does_not_take_what_one_left_whose_worker_was_killed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure cuts a kernel off while it is compiled; MLX takes it as it is, and the job would fail for it."""
    monkeypatch.setenv("QLORA_TEST_END", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    run = RunFolder(tmp_path / "run")
    left = attempt(run.path, ".tmp")
    assert files_of(left)
    with TrainingProcess(run, 2, {}, tmp_path / "kernels", task_module="support.ending_task") as training:
        assert files_of(left) == {}
        training.record_exit()


def test_a_disk_that_takes_nothing_is_no_trouble_of_the_job(tmp_path: Path, cache: KernelCache) -> None:
    """Trained to its end, a job must not fail for kernels, nor for a line that says so."""
    run = RunFolder(tmp_path / "run")
    attempt(run.path, ".tmp")
    (tmp_path / "kernels").touch()  # no folder can be made there
    said: list[Event] = []
    with kept(cache, run, EventLog([said.append])):
        pass
    assert [(event["event"], event["doing"]) for event in said] == [("kernels.lost", "keeping them")]

    def full(_: Event) -> None:
        raise OSError(28, "No space left on device")

    with kept(cache, run, EventLog([full])):
        pass
