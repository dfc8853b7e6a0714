"""Whether a process ended for want of memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_engine.job.exits import ExitRecord
from qlora_worker.memory_evidence import Evidence, MemoryWatch, out_of_memory, system_kills
from support.service import ROOT

KILL, SEGV, BUS, ABRT, TERM = (-int(s) for s in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, 15))
SCARCE = {"available": 1, "total": 100}


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (Evidence(KILL, system_kills=1), "the system killed it"),
        (Evidence(KILL, **SCARCE), "SIGKILL with"),
        (Evidence(SEGV, **SCARCE), "SIGSEGV with"),
        (Evidence(SEGV, limit=4_000_000_000), "SIGSEGV under a memory limit of 4 GB"),
        (Evidence(BUS, limit=1), "SIGBUS under"),
        (Evidence(ABRT, limit=1), "SIGABRT under"),
        (Evidence(ABRT, printed="x\n  what():  std::bad_alloc\n"), "“what():  std::bad_alloc”"),
        (Evidence(ABRT, printed="[METAL] failed: Insufficient Memory (00000008: …)"), "Insufficient Memory"),
        (Evidence(ABRT, printed="CUDA error: out of memory"), "out of memory"),
        (Evidence(1, printed="Traceback\nMemoryError\n"), "“MemoryError”"),
    ],
)
def test_signs_of_it(evidence: Evidence, words: str) -> None:
    """A job that would fit in smaller pieces would crash three times and fail."""
    assert words in (out_of_memory(evidence) or "")


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence(KILL),  # a person
        Evidence(KILL, killed_here=True, system_kills=1, **SCARCE),  # its worker
        Evidence(KILL, limit=1),  # nothing kills for a limit
        Evidence(SEGV),
        Evidence(SEGV, system_kills=1),  # another process was killed
        Evidence(TERM, **SCARCE),
        Evidence(0, system_kills=1, printed="out of memory", **SCARCE),
        Evidence(75, system_kills=1, printed="out of memory", **SCARCE),
        Evidence(65, printed="MemoryError"),  # it has said itself what is wrong
    ],
)
def test_everything_else_is_not(evidence: Evidence) -> None:
    """A crash taken for want of memory makes the job slower for the rest of its run."""
    assert out_of_memory(evidence) is None


def test_only_what_the_process_printed_itself_counts(tmp_path: Path) -> None:
    """The output of the attempt before is in the same file."""
    output = tmp_path / "output.log"
    output.write_text("std::bad_alloc\n")
    watch = MemoryWatch(output)
    with output.open("a") as file:
        file.write("new\n")
    evidence = watch.evidence(ABRT, killed_here=False)
    assert evidence.printed == "new\n"
    assert evidence.total > evidence.available > 0


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"proc/vmstat": "nr_free_pages 7\noom_kill 3\n"}, 3),
        (
            {
                "proc/vmstat": "oom_kill 3\n",
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.events": "oom 9\noom_kill 2\noom_group_kill 0\n",
            },
            2,
        ),
        (
            {
                "proc/vmstat": "oom_kill 3\n",
                "proc/self/cgroup": "0::/not/seen/from/inside\n",
                "sys/fs/cgroup/memory.events": "oom_kill 1\n",
            },
            1,
        ),
        (
            {
                "proc/vmstat": "oom_kill 3\n",
                "proc/self/cgroup": "4:memory:/job\n1:cpu:/\n0::/\n",
                "sys/fs/cgroup/memory/job/memory.oom_control": "under_oom 0\noom_kill 5\n",
            },
            5,
        ),
        ({}, 0),
    ],
    ids=["machine", "cgroup 2", "container", "cgroup 1", "not Linux"],
)
def test_where_the_system_counts_its_kills(tmp_path: Path, files: dict[str, str], count: int) -> None:
    """The machine's own count takes what happens in another container for what happened here."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert system_kills(tmp_path) == count


UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from qlora_engine.job.folder import RunFolder
from qlora_worker.training import TrainingProcess
resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9))
run = RunFolder(Path(sys.argv[1]))
with TrainingProcess(run, 1, {}, run.path / "kernels", task_module="support.greedy_task") as training:
    training.record_exit()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not enforce the limit")
def test_a_failed_allocation_of_mlx_is_recognized(tmp_path: Path) -> None:
    """MLX on the CPU answers it with a fault of the process, not with an exception that anybody could catch."""
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, check=True,
        timeout=60,
    )  # fmt: skip
    ended = ExitRecord.load(tmp_path / "exit-1.json")
    assert ended is not None
    assert ended.signal is not None or ended.code == 1
    assert ended.memory, (ended, (tmp_path / "output.log").read_text())
