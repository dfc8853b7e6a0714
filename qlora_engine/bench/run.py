"""A bench as one story: the cases, the pairs in alternating order, the result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_engine import launch
from qlora_engine.bench.jobs import BenchJob, full_rows
from qlora_engine.bench.result import BenchResult, Case, Comparison, Measurement, Pair, Trainer
from qlora_engine.bench.trainer import Effort, measure
from qlora_engine.job.errors import BenchFailed
from qlora_engine.job.jobfile import as_yaml
from qlora_engine.job.text import plain

ROW_WRITER = "qlora_engine.training.full_rows"
BASELINE = "qlora_engine.training.baseline"
WINDOWS = 4  # optimizer steps of full rows that are written; they are gone through as often as it takes


@dataclass(frozen=True)
class Turn:
    """One run in a bench.

    Attributes:
        rows: the job's own, or full ones.
        packing: of the engine, instead of the job's choice.
    """

    trainer: Trainer
    rows: str
    packing: str | None = None

    @property
    def words(self) -> str:
        """For a person."""
        how = f", packing {self.packing}" if self.packing else ""
        return f"{'the engine' if self.trainer == 'engine' else 'mlx_lm'}, {self.rows} rows{how}"


# What is compared with what. mlx_lm's run on padded rows stands for two comparisons.
MLX_LM_PADDED, MLX_LM_PACKED = Turn("mlx_lm", "padded"), Turn("mlx_lm", "packed")
COMPARED: dict[Case, tuple[Turn, Turn]] = {
    "padded": (MLX_LM_PADDED, Turn("engine", "padded")),
    "packing off": (MLX_LM_PADDED, Turn("engine", "padded", packing="off")),
    "packed": (MLX_LM_PACKED, Turn("engine", "packed")),
}

Progress = Callable[[int, Turn, Measurement | None], None]


@dataclass(frozen=True)
class Bench:
    """What a bench needs.

    Attributes:
        work: an existing folder that lasts as long as the bench.
        logs: where the traceback of an engine that failed is kept.
        lock: descriptor of the GPU lock, which this process holds.
        tell: is called with the pair from 0 and the turn, before it without and after it with the measurement.
    """

    job: BenchJob
    cases: Sequence[Case]
    pairs: int
    effort: Effort
    work: Path
    logs: Path
    cpu_blas: str
    lock: int
    tell: Progress
    _made: dict[str, BenchJob] = field(default_factory=dict)

    def run(self) -> BenchResult:
        """Measure every pair of every case.

        Raises:
            BenchFailed: a trainer did not get far enough.
        """
        measured: dict[Turn, list[Measurement]] = defaultdict(list)
        machine: dict[str, Any] = {}
        for pair, turn in order(self.cases, self.pairs):
            self.tell(pair, turn, None)
            done, found = self._measure(turn, seed=self.job.spec.seed + pair)
            measured[turn].append(done)
            machine = found if turn.trainer == "engine" else machine
            self.tell(pair, turn, done)
        return BenchResult([self._compare(case, measured) for case in self.cases], self._shown(), machine)

    def _compare(self, case: Case, measured: Mapping[Turn, Sequence[Measurement]]) -> Comparison:
        theirs, ours = (measured[turn] for turn in COMPARED[case])
        return Comparison(case, [Pair(engine, mlx_lm) for engine, mlx_lm in zip(ours, theirs, strict=True)])

    def _measure(self, turn: Turn, *, seed: int) -> tuple[Measurement, dict[str, Any]]:
        job = self._job_on(turn.rows)
        with tempfile.TemporaryDirectory(dir=self.work) as temporary:
            folder = Path(temporary)
            if turn.trainer == "engine":
                command, environment = self._engine(job.for_engine(seed, packing=turn.packing), folder)
            else:
                command, environment = self._mlx_lm(job, seed, folder)
            try:
                return measure(turn.trainer, command, environment, self.effort, lock=self.lock)
            except BenchFailed as error:
                raise self._keeping(folder / "run" / "output.log", error) from None

    def _keeping(self, output: Path, error: BenchFailed) -> BenchFailed:
        """The error, with what it points to in a place that outlasts the bench."""
        if error.where is None or not output.exists():
            return error
        self.logs.mkdir(parents=True, exist_ok=True)
        kept = shutil.copy(output, self.logs / "bench-output.log")
        return BenchFailed(error.what, where=error.where.replace(str(output), str(kept)), remedy=error.remedy)

    def _engine(self, keys: Mapping[str, Any], folder: Path) -> tuple[list[str], dict[str, str]]:
        """As it runs in the foreground, but for the lock, which the bench holds, and the report."""
        file = _written(folder / "job.json", json.dumps(keys))
        command = [sys.executable, "-P", "-m", "qlora_engine", str(file), "--run", str(folder / "run"), "--json"]
        ours = {"QLORAD_GPU_LOCK": str(folder / "gpu.lock"), "QLORAD_REPORT": "false"}
        return command, {**os.environ, **launch.environment(self.cpu_blas, None), **ours}

    def _mlx_lm(self, job: BenchJob, seed: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        """As it is installed: nothing of what the engine puts into its environment."""
        config = _written(folder / "config.yaml", as_yaml(job.for_mlx_lm(seed, folder / "adapters")))
        spec = folder / "spec.json"
        job.resolved.store(spec)
        return [sys.executable, "-P", "-m", BASELINE, str(config), str(spec)], dict(os.environ)

    def _job_on(self, rows: str) -> BenchJob:
        if rows == "padded":
            return self.job
        if rows not in self._made:
            self._made[rows] = self._write_full_rows()
        return self._made[rows]

    def _write_full_rows(self) -> BenchJob:
        """In a process of its own, since it needs the tokenizer."""
        folder = self.work / "full"
        folder.mkdir()
        spec = folder / "spec.json"
        self.job.resolved.store(spec)
        keys = self.job.spec
        rows = WINDOWS * keys.batch_size * keys.grad_accumulation_steps
        command = [sys.executable, "-P", "-m", ROW_WRITER, str(spec), str(folder), str(rows)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()[-1:] or [f"code {done.returncode}"]
            raise BenchFailed(
                f"Full rows cannot be made of the job's data: {plain(said[0], 300)}",
                where=self.job.resolved.data["train"].path,
                remedy="Measure padded rows alone: `qlora bench --case padded`.",
            )
        return full_rows(self.job, folder)

    def _shown(self) -> dict[str, Any]:
        keys = self.job.shared_keys()
        return {**keys, "seed": self.job.spec.seed, "rows": self.job.resolved.data["train"].rows}


def order(cases: Sequence[Case], pairs: int) -> Iterator[tuple[int, Turn]]:
    """Every run with its pair, from 0: all of a pair stand together, and every other pair is in reverse.

    So neither trainer always comes first, and a machine that slows down as it warms favours neither.
    """
    turns = list(dict.fromkeys(turn for case in cases for turn in COMPARED[case]))
    for pair in range(pairs):
        for turn in turns if pair % 2 == 0 else reversed(turns):
            yield pair, turn


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
