"""Survey a job before it is accepted: examine it, count its tokens, estimate its memory and its time.

Runs as a short-lived process of its own (`python -P -m qlora_engine.training.survey`) and speaks as
`qlora_engine.job.examine` does: a line for each `ExamineRequest` on standard input, and for each `Verdict` on standard
output. It reads no weights and, unless a request says to measure, does not touch the GPU.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import mlx.core as mx
import psutil
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer

from qlora_engine.job.errors import DataRejected, ModelRejected, QloradError
from qlora_engine.job.examine import examine_request
from qlora_engine.job.folder import Home
from qlora_engine.job.members import ResolvedSweep, saying_which
from qlora_engine.job.preflight.backends import Name
from qlora_engine.job.preflight.batch import GRID, Batch
from qlora_engine.job.preflight.duration import SPEED_KEYS, Speed, Work, operations, speed_of_earlier, steps_of
from qlora_engine.job.preflight.fusing import fuse_need, judge
from qlora_engine.job.preflight.judgement import Fit, Machine, fit
from qlora_engine.job.preflight.memory import GIGA
from qlora_engine.job.preflight.shape import ModelShape, ShapeUnknown
from qlora_engine.job.resolved import ResolvedFuse, ResolvedJob
from qlora_engine.job.spec import JobSpec, Memory
from qlora_engine.job.survey import Survey
from qlora_engine.job.text import many
from qlora_engine.job.unforeseen import said_by
from qlora_engine.job.verdict import ExamineRequest, Verdict, answer_requests
from qlora_engine.settings import EngineSettings
from qlora_engine.training import export_gguf
from qlora_engine.training.device import on_cpu
from qlora_engine.training.encode import DECIDES
from qlora_engine.training.ladder import Layout, next_rung
from qlora_engine.training.memory import Device, limits_of
from qlora_engine.training.tally import Tally, tally
from qlora_engine.training.throughput import measured_speed
from qlora_engine.training.token_cache import TokenCache
from qlora_engine.training.token_source import TokenSource

T = TypeVar("T")

USABLE = 0.9  # of the machine's memory, where nothing else sets a limit
REMEMBERED = 8  # results of a kind
LOOK_SECONDS = 60.0  # at the rows of a file; what is left is estimated
SWEEP_SECONDS = 300.0  # at the rows for all jobs of a sweep, should each have its own tokens


class KnownBefore:
    """What the jobs of a sweep have in common, found out once by the process that examines them one after another."""

    def __init__(self) -> None:
        self.machines = Remembered[Machine]()
        self.tokenizers = Remembered[TokenizerWrapper]()
        self.tallies = Remembered[Tally]()
        self.speeds = Remembered[Speed | None]()
        self.measured = Remembered[float | None]()


class Remembered(Generic[T]):
    """The newest few results by key."""

    def __init__(self) -> None:
        self._found: dict[str, T] = {}

    def __call__(self, key: str, find: Callable[[], T]) -> T:
        """What is known under this key, or what `find` finds."""
        if key not in self._found:
            found = find()
            while len(self._found) >= REMEMBERED:
                del self._found[next(iter(self._found))]
            self._found[key] = found
        return self._found[key]


def survey(
    job: ResolvedJob,
    home: Home,
    *,
    cache: TokenCache | None = None,
    gpu_lock: Path | None = None,
    seconds: float = LOOK_SECONDS,
    known_before: KnownBefore | None = None,
    memory_share: float = 1.0,
) -> Survey:
    """What a job's data and model show.

    Args:
        job: examined.
        home: whose earlier runs tell how fast training is.
        cache: of tokens, which are counted there, and put there when all of them are made.
        gpu_lock: time the device for the estimate of the time, while this lock is free; None leaves it alone.
        seconds: to spend on the rows of each file.
        known_before: what other jobs of this process have shown.
        memory_share: of the device's memory that training may use at most.

    Raises:
        JobRejected: no row has a target, or the job surely does not fit into memory.
        ModelRejected: the tokenizer cannot be loaded.
    """
    known_before = known_before or KnownBefore()
    machine = known_before.machines(
        job.spec.memory.model_dump_json(), lambda: find_machine(job.spec.memory, memory_share)
    )
    known = Survey(backend=machine.backend, limit_gb=machine.limit / GIGA, limit_source=machine.source)
    if job.model_path is None:
        return _with(known, f"The model {job.spec.model} is not on this machine yet, so its memory is not known.")
    if not job.data:
        return _with(known, "The data set comes from the hub and is looked at when training begins.")
    model = Path(job.model_path)
    tokenizer = known_before.tokenizers(str(model), lambda: _tokenizer(model, job.spec.model))
    tokens = TokenSource(job.spec, tokenizer, model, cache)
    file = job.data["train"]
    counted_by = job.spec.model_dump_json(include={*DECIDES, "max_seq_length", "batch_size"})
    rows = known_before.tallies(f"{model} {file} {counted_by}", lambda: tally(file, tokens, seconds=seconds))
    _check_targets(job, rows)
    known = _counted(known, job, rows)
    try:
        shape = ModelShape.of(json.loads((Path(job.model_path) / "config.json").read_bytes()))
    except (ShapeUnknown, ValueError) as unknown:
        return _with(known, f"The memory that this model needs is not known: {unknown}.")
    batch = Batch.widest(
        job.spec, rows=rows.rows, longest=rows.longest, targets=rows.most_targets, backend=machine.backend
    )
    judged = fit(job.spec, shape, batch, machine, list(_ladder(job.spec, batch)))
    work = _work(job, rows, machine.backend)
    alike = f"{model} {machine.backend} {job.spec.model_dump_json(include=set(SPEED_KEYS))}"
    if earlier := known_before.speeds(alike, lambda: speed_of_earlier(job, home, machine.backend)):
        time, source = earlier.seconds(work), earlier.source
    elif gpu_lock is not None and (
        speed := known_before.measured(f"{model} {batch}", lambda: measured_speed(shape, batch, gpu_lock))
    ):
        time, source = operations(job.spec, shape, work, batch) / speed, "rough, from a short measurement"
    else:
        return _judged(known, judged)
    return _judged(known, judged).model_copy(update={"seconds": round(time, 1), "seconds_source": source})


def survey_fuse(job: ResolvedFuse, home: Home, *, known_before: KnownBefore, memory_share: float = 1.0) -> Survey:
    """What the model of a job that fuses shows: whether it fits, and whether it can be exported.

    Raises:
        JobRejected: it surely does not fit into memory.
        ConversionRefused: it cannot be written as GGUF.
        ModelRejected: the tokenizer cannot be loaded.
    """
    memory = Memory()
    machine = known_before.machines(memory.model_dump_json(), lambda: find_machine(memory, memory_share))
    known = Survey(backend=machine.backend, limit_gb=machine.limit / GIGA, limit_source=machine.source)
    if job.model_path is None:
        return _with(known, f"The model {job.model} is not on this machine yet, so its memory is not known.")
    model = Path(job.model_path)
    if job.spec.export:
        tokenizer = known_before.tokenizers(str(model), lambda: _tokenizer(model, job.model))
        export_gguf.metadata(json.loads((model / "config.json").read_bytes()), tokenizer, job.source, str(model))
    try:
        config = json.loads((model / "config.json").read_bytes())
        need = fuse_need(job.spec, ResolvedJob.load(home.run(job.source).spec).spec, ModelShape.of(config))
    except (ShapeUnknown, ValueError) as unknown:
        return _with(known, f"The memory that this model needs is not known: {unknown}.")
    warnings = judge(need, job.spec, machine, shutil.disk_usage(home.path).free)
    parts = {name: round(size / GIGA, 4) for name, size in need.parts.items()}
    return _with(known.model_copy(update={"peak_gb": round(need.memory / GIGA, 3), "parts": parts}), *warnings)


def find_machine(memory: Memory, share: float = 1.0) -> Machine:
    """The device that training would use and its limits.

    What is free at the moment says little: another job may be running, which will have ended by then.
    """
    limits, room = limits_of(memory, Device.found(), share), int(USABLE * psutil.virtual_memory().total)
    backend: Name = "cpu" if on_cpu() else "metal" if mx.metal.is_available() else "cuda"
    if limits.limit is None:
        return Machine(backend, room, "the machine's memory", room)
    return Machine(backend, limits.limit, limits.source, room)


def _tokenizer(path: Path, name: str) -> TokenizerWrapper:
    config = json.loads((path / "config.json").read_bytes())
    try:
        found: TokenizerWrapper = load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))
    except Exception as error:
        raise ModelRejected(
            f"The tokenizer of `{name}` cannot be loaded: {said_by(error)}.",
            where=str(path),
            remedy="Check that the folder holds tokenizer.json and tokenizer_config.json of this model.",
        ) from error
    return found


def _check_targets(job: ResolvedJob, rows: Tally) -> None:
    if rows.supervised or rows.sampled is not None:
        return
    longer = rows.longest > job.spec.max_seq_length
    raise DataRejected(
        "No training row has anything to learn"
        + (f": every prompt fills max_seq_length {job.spec.max_seq_length}." if longer else "."),
        where=job.data["train"].path,
        remedy=f"Set max_seq_length to {rows.longest}, or shorten the prompts."
        if longer
        else "With `mask_prompt`, only what an assistant says is learned: check the roles and completions.",
    )


def _counted(known: Survey, job: ResolvedJob, rows: Tally) -> Survey:
    valid = job.data["valid"].rows if "valid" in job.data else 0
    about = "about " if rows.sampled else ""
    warnings = []
    if rows.truncated:
        warnings.append(
            f"{about.capitalize()}{rows.truncated:,} of {many(rows.rows, 'row')} "
            f"{'is' if rows.truncated == 1 else 'are'} longer than max_seq_length "
            f"{job.spec.max_seq_length}: {rows.lost_share:.1%} of the tokens are cut; {rows.longest:,} would keep all."
        )
    if rows.nothing_to_learn:
        warnings.append(
            f"{about.capitalize()}{rows.nothing_to_learn:,} of {many(rows.rows, 'row')} "
            f"{'has' if rows.nothing_to_learn == 1 else 'have'} nothing to learn."
        )
    if not valid:
        warnings.append("There is no validation data, so nothing shows whether the model learns more than the rows.")
    return known.model_copy(
        update={
            "rows": rows.rows, "tokens": rows.tokens, "supervised": rows.supervised, "truncated": rows.truncated,
            "lost_share": round(rows.lost_share, 6), "nothing_to_learn": rows.nothing_to_learn,
            "longest": rows.longest, "sampled": rows.sampled, "valid": valid,
            "steps": steps_of(job.spec, rows.rows), "warnings": warnings,
        }
    )  # fmt: skip


def _judged(known: Survey, judged: Fit) -> Survey:
    parts = {name: round(size / GIGA, 4) for name, size in judged.estimate.parts.items()}
    peak = round(judged.estimate.total / GIGA, 3)
    return _with(known.model_copy(update={"peak_gb": peak, "parts": parts}), *judged.warnings)


def _with(known: Survey, *warnings: str) -> Survey:
    return known.model_copy(update={"warnings": [*known.warnings, *warnings]})


def _ladder(spec: JobSpec, batch: Batch) -> Iterator[tuple[str, Batch]]:
    """What training steps down to when memory runs out."""
    layout = Layout.of(spec)
    while rung := next_rung(layout, spec):
        layout = rung.layout
        lower = batch.of_rows(min(batch.rows, layout.rows)).cut(layout.longest).recomputed(layout.recompute)
        yield rung.change, lower


def _work(job: ResolvedJob, rows: Tally, backend: Name) -> Work:
    """Padding is half a step of the width a row, since rows of like length go together."""
    spec = job.spec
    steps = steps_of(spec, rows.rows)
    seen = steps * spec.batch_size  # rows
    kept = (rows.tokens - rows.lost) / rows.rows
    validations = 2 + steps // spec.eval_every if "valid" in job.data and spec.val_batches else 0
    valid = job.data["valid"].rows if validations else 0
    each = valid if spec.val_batches < 0 else min(valid, spec.val_batches * spec.batch_size)
    targets = rows.supervised / rows.rows
    return Work(steps, seen * (kept + GRID[backend].step / 2), seen * targets, validations * each * targets)


def main() -> int:
    """Survey what is asked for until standard input ends."""
    settings, known_before = EngineSettings.read(), KnownBefore()

    def quietly(request: ExamineRequest) -> Verdict:
        with contextlib.redirect_stdout(sys.stderr):  # libraries print, and the verdict must stand alone
            return verdict_on(request, settings, known_before)

    return answer_requests(quietly)


def verdict_on(
    request: ExamineRequest, settings: EngineSettings | None = None, known_before: KnownBefore | None = None
) -> Verdict:
    """The answer to a request."""
    try:
        found = examine_request(request)
        lock, home = Path(request.measure) if request.measure else None, Home(Path(request.home))
        settings = settings or EngineSettings.read()
        known_before = known_before or KnownBefore()
        if isinstance(found, ResolvedFuse):
            return Verdict.of(
                found, survey_fuse(found, home, known_before=known_before, memory_share=settings.memory_share)
            )
        cache = TokenCache.of(home, settings.token_cache_gb) if home.path.is_dir() else None  # looking makes no home
        look = partial(
            survey, home=home, cache=cache, gpu_lock=lock, known_before=known_before,
            memory_share=settings.memory_share,
        )  # fmt: skip
        if isinstance(found, ResolvedJob):
            return Verdict.of(found, look(found))
        return Verdict.of(_surveyed(found, look))
    except QloradError as error:
        return Verdict.against(error)


def _surveyed(sweep: ResolvedSweep, look: Callable[..., Survey]) -> ResolvedSweep:
    """A sweep with what was found out about each job. What they have in common is looked at once."""
    members = []
    for member in sweep.members:
        with saying_which(member.settings):
            found = look(member.job, seconds=min(LOOK_SECONDS, SWEEP_SECONDS / len(sweep.members)))
        members.append(member.model_copy(update={"survey": found}))
    return sweep.model_copy(update={"members": tuple(members)})


if __name__ == "__main__":
    sys.exit(main())
