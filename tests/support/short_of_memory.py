"""The foreground engine in which memory runs out at the third micro-batch, as it does on a GPU: by an error of MLX.

The process that it starts again is the engine as it is.
"""

from __future__ import annotations

from typing import Any

from qlora_engine.foreground import app
from qlora_engine.training.results import StartedMicroBatch
from qlora_engine.training.step import TrainingStep

MESSAGE = "[malloc] Unable to allocate 17179869184 bytes."


def main() -> None:
    real, calls = TrainingStep.start, 0

    def start(self: TrainingStep, *arguments: Any) -> StartedMicroBatch:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError(MESSAGE)
        return real(self, *arguments)

    TrainingStep.start = start  # type: ignore[method-assign]
    app(prog_name="python -m qlora_engine")


if __name__ == "__main__":
    main()
