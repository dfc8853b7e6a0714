"""Run `mlx_lm.lora` as it is and report each iteration: `python -P -m qlora_engine.training.baseline CONFIG SPEC_JSON`.

The trainer, its loss, its batches and its clock are mlx_lm's own. Three names of the module `mlx_lm.lora` are set from
outside, where it takes data in and lets results out: its reporting callback, its loader of data (which hides the
validation rows) and its data set (which notes the rows that the trainer takes). Events as the engine's
`training.report` go to standard output, what mlx_lm prints goes to standard error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.datasets import CacheDataset

from qlora_engine.job.errors import Exit
from qlora_engine.job.record import utc_now
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.training.data import tokenize

lora: Any = importlib.import_module("mlx_lm.lora")  # Any: names of it are set here, which a type checker forbids
Row = dict[str, Any]


class Taken:
    """The rows that the trainer took since they were last counted."""

    def __init__(self, job: ResolvedJob) -> None:
        self._job, self._rows = job, list[Row]()
        self.tokenizer: TokenizerWrapper | None = None

    def add(self, row: Row) -> None:
        """Note one row."""
        self._rows.append(row)

    def count(self) -> int:
        """Their supervised targets, by the engine's own rule; and forget them."""
        rows, self._rows = self._rows, []
        file = self._job.data["train"]
        assert self.tokenizer is not None  # noqa: S101  # mlx_lm loads it before the data
        documents = tokenize(enumerate(rows, 1), file.path, file.format, self._job.spec, self.tokenizer)
        return sum(document.targets for document in documents)


class Reporting(TrainingCallback):
    """Writes an event for each of mlx_lm's own reports."""

    def __init__(self, taken: Taken, output: TextIO) -> None:
        self._taken, self._output, self._targets = taken, output, 0

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        """One iteration is done; its time is by mlx_lm's clock."""
        self._targets += self._taken.count()
        event = {
            "ts": utc_now().isoformat(timespec="milliseconds"),
            "event": "training.report",
            "step": train_info["iteration"],
            "tokens": self._targets,
            "seconds": 1 / train_info["iterations_per_second"],
            "peak_gb": train_info["peak_memory"],
            "loss": train_info["train_loss"],
        }
        self._output.write(f"{json.dumps(event)}\n")
        self._output.flush()


def observe(taken: Taken, output: TextIO) -> None:
    """Set the three names of `mlx_lm.lora`."""
    load_dataset = lora.load_dataset

    class Rows(CacheDataset):
        def __getitem__(self, index: int) -> Any:
            taken.add(self._data[index])
            return super().__getitem__(index)

    def training_rows(args: Any, tokenizer: TokenizerWrapper) -> tuple[Any, list[Row], list[Row]]:
        taken.tokenizer = tokenizer
        return load_dataset(args, tokenizer)[0], [], []

    lora.CacheDataset = Rows
    lora.load_dataset = training_rows
    lora.get_reporting_callbacks = lambda *_, **__: Reporting(taken, output)


def main() -> int:
    """Train without end; whoever started this ends it."""
    parser = argparse.ArgumentParser(prog="qlora_engine.training.baseline", description=__doc__)
    parser.add_argument("config", help="a config of mlx_lm.lora")
    parser.add_argument("spec", type=Path, help="the resolved job, whose rule says what a target is")
    arguments = parser.parse_args()
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # mlx_lm prints a table and a bar
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # or what it printed would follow its error
    observe(Taken(ResolvedJob.load(arguments.spec)), output)
    sys.argv = ["mlx_lm.lora", "--config", arguments.config]
    lora.main()
    return 0


def _end_with_parent() -> None:
    """End this process when the other end of its standard input is closed: nobody measures it any more."""
    while os.read(sys.stdin.fileno(), 64):
        pass
    os._exit(Exit.TEMPFAIL)  # not sys.exit: the main thread may be deep in a computation


if __name__ == "__main__":
    sys.exit(main())
