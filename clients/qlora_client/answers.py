"""Answers of a base model and of the same model with adapters, from a process that may import mlx."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from qlora_client.models import error_from
from qlora_engine import launch
from qlora_engine.job import lock
from qlora_engine.job.errors import GpuBusy, QloradError, WrongState
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.text import plain, plain_lines
from qlora_worker.settings import Settings

ANSWERER = "qlora_engine.training.answer"
MAX_TOKENS = 60
ADAPTERS = "adapters.safetensors"
INSTANT = 2.0  # seconds; whoever looks at the lock holds it for an instant


class NoAnswers(QloradError):
    """The models could not be asked."""


@dataclass(frozen=True)
class Asking:
    """How both models are asked.

    Attributes:
        max_tokens: of each answer.
        temp: 0 takes the likeliest token each time.
        seed: of the draws when `temp` is above 0.
        best: ask the checkpoint of the lowest validation loss instead of the run's adapters.
    """

    max_tokens: int = MAX_TOKENS
    temp: float = 0.0
    seed: int = 0
    best: bool = False


@dataclass(frozen=True)
class Answer:
    """One prompt, what both models say to it, and where the adapted one's weights are from."""

    prompt: str
    base: str
    adapted: str
    weights: str


def ask_both(
    run: RunFolder,
    prompts: Sequence[str],
    settings: Settings,
    asking: Asking | None = None,
    *,
    wait: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Answer]:
    """Have the base model and the adapted one answer each prompt, when the GPU is free.

    A job that trains has the adapters of its newest checkpoint, and the GPU: its turn is over when it ends or is held.

    Args:
        wait: for the GPU, as long as it takes; otherwise it must be free now.
        tell: is told who holds the GPU, once for each holder.

    Raises:
        WrongState: the run has no adapters.
        GpuBusy: something else uses the GPU, and `wait` is False.
        NoAnswers: the process that asks them failed without saying why.
        QloradError: what that process says is wrong.
    """
    if run.model.exists() or run.gguf.exists():
        raise WrongState(
            f"{run.id} has fused what another job has learned, and has no base beside it.",
            where=str(run.path),
            remedy="Ask that other job"
            + (
                f", or this model: python -m mlx_lm generate --model {run.model} --prompt …"
                if run.model.exists()
                else "."
            ),
        )
    if not (run.adapters / ADAPTERS).exists():
        raise WrongState(
            f"{run.id} has no adapters yet: they come with its first checkpoint.",
            where=str(run.adapters),
            remedy=f"`qlora show {run.id}` says how far it is; try again after the first checkpoint.",
        )
    request = {"run": str(run.path), "prompts": list(prompts), **asdict(asking or Asking())}
    with _gpu(settings, wait=wait, tell=tell) as held:
        return _answered(request, run, settings, held.descriptor)


@contextmanager
def _gpu(settings: Settings, *, wait: bool, tell: Callable[[str], None]) -> Iterator[lock.HeldLock]:
    path, told = settings.gpu_lock_path, ""
    while True:
        try:
            held = lock.acquire(path, {"pid": os.getpid(), "job": "qlora try"}, wait=INSTANT)
        except lock.LockHeld as busy:
            who = plain(busy.holder.get("job", "a process that has not named itself"), 100)
            who = f"{who} (process {plain(busy.holder.get('pid', 'unknown'), 20)})"
            if not wait:
                raise GpuBusy(
                    f"The GPU is in use by {who}.",
                    where=str(path),
                    remedy="Leave --now away to wait for it, or stop a job at a checkpoint: `qlora hold ID`.",
                ) from None
            if who != told:
                tell(f"Waiting for the GPU, which {who} uses.")
                told = who
        else:
            break
    with held:
        yield held


def _answered(request: dict[str, Any], run: RunFolder, settings: Settings, descriptor: int) -> list[Answer]:
    """Start the process that asks; it holds the lock too, so that nothing trains beside it if this one is killed."""
    command = [sys.executable, "-P", "-m", ANSWERER]
    done = subprocess.run(
        command,
        input=json.dumps(request),
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | launch.environment(settings.cpu_blas, run),
        pass_fds=[descriptor],
        check=False,
    )
    lines = [line for line in map(_object, done.stdout.splitlines()) if line]
    if lines and "what" in lines[-1]:
        raise error_from(lines[-1])
    answers = [Answer(**line) for line in lines]
    if done.returncode != 0 or len(answers) != len(request["prompts"]):
        said = plain_lines(done.stderr).strip().splitlines()
        raise NoAnswers(
            f"The models could not be asked (code {done.returncode}){': ' + plain(said[-1], 300) if said else ''}.",
            where=" ".join(command),
            remedy=f"Ask mlx_lm itself: python -m mlx_lm generate --model MODEL --adapter-path {run.adapters}",
        )
    return answers


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
