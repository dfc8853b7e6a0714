"""A whole run in this process: which adapters are its result, when it ends early, and what it does with less memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from qlora_engine import blas
from qlora_engine.job.datafiles import check_folder
from qlora_engine.job.errors import DataRejected, Exit, OutOfMemory, ResumeRefused, RunDamaged
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.formats import NewerFormat
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec, Memory
from qlora_engine.training import checkpoint, choices, runtime
from qlora_engine.training.choices import Choices
from qlora_engine.training.device import on_cpu
from qlora_engine.training.measured import Measured
from qlora_engine.training.results import StartedMicroBatch
from qlora_engine.training.resume import Checkpoints
from qlora_engine.training.run import Outcome, train
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.stop import StopRequest
from qlora_engine.training.targets import Targets
from support import tiny
from support.foreground import digest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("run") / "model", layers=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("run") / "data", train=14, valid=4, test=3)


@pytest.fixture(autouse=True)
def limits_of_before() -> Iterator[None]:
    """A run sets MLX's limits for its whole process, which other tests share."""
    cache = mx.set_cache_limit(1 << 30)
    yield
    mx.set_cache_limit(cache)


class Run:
    """A run folder and what was said in it."""

    def __init__(self, folder: Path, model: Path, data: Path, **keys: Any) -> None:
        self.folder, self.events = RunFolder(folder), list[Event]()
        self.folder.path.mkdir(parents=True, exist_ok=True)
        spec = JobSpec(**tiny.job(model, data, **keys))
        self.job = ResolvedJob(spec=spec, model_path=str(model), data=check_folder(data, spec))
        self.job.store(self.folder.spec)

    def go(
        self, attempt: int = 0, known: Measured | None = None, stop_at: Event | None = None, **changed: Any
    ) -> Outcome:
        """One process's part, with some of the job's keys changed; it may be asked to stop at an event like this."""
        self.events.clear()
        self.stop = StopRequest()
        job = self.job.model_copy(update={"spec": self.job.spec.model_copy(update=changed)})

        def stop_there(event: Event) -> None:
            if stop_at is not None and stop_at.items() <= event.items():
                self.stop.request("the test")

        metrics = EventLog([stop_there])
        log = EventLog([self.events.append, stop_there])
        return train(job, self.folder, attempt=attempt, log=log, metrics=metrics, stop=self.stop, known=known)

    def said(self, name: str) -> list[Event]:
        return [event for event in self.events if event["event"] == name]

    @property
    def done(self) -> Event:
        (event,) = self.said("training.done")
        return event

    @property
    def adapters(self) -> dict[str, mx.array]:
        return mx.load(str(self.folder.adapters / "adapters.safetensors"))

    def masters_of(self, step: int) -> dict[str, mx.array]:
        """The adapters in a checkpoint."""
        arrays = checkpoint.load_arrays(checkpoint.folder_of(self.folder.checkpoints, step))
        return {name.removeprefix("masters."): a for name, a in arrays.items() if name.startswith("masters.")}


def same(left: dict[str, mx.array], right: dict[str, mx.array]) -> bool:
    return left.keys() == right.keys() and all(mx.array_equal(left[name], right[name]) for name in left)


# A rate that first helps and then harms, so that the best is neither the first nor the last.
OVERSHOOTS = {
    "iters": 8,
    "grad_accumulation_steps": 1,
    "optimizer": "sgd",
    "lr_schedule": {"name": "exponential_decay", "arguments": [0.02, 1.8]},
    "steps_per_eval": 2,
    "save_every": 100,
}


@pytest.fixture(scope="module")
def overshot(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> Path:
    """A run that has ended, with `keep: best`."""
    run = Run(tmp_path_factory.mktemp("overshot") / "run", model, data, **OVERSHOOTS, keep="best")
    assert run.go() is Outcome.DONE
    losses = {event["step"]: event["loss"] for event in run.said("validation")}
    best = min(losses, key=lambda step: losses[step])
    assert 0 < best < 10
    assert losses[8] > 1.02 * losses[best]
    assert (run.done["kept"], run.done["kept_step"]) == ("best", best)
    assert run.done["loss_after"] == losses[best]
    assert run.done["loss_before"] == losses[0]
    assert same(run.adapters, run.masters_of(best))
    assert not same(run.adapters, run.masters_of(8))
    (run.folder.path / "best").write_text(str(best))
    return run.folder.path


def copy_of(overshot: Path, folder: Path, model: Path, data: Path) -> tuple[Run, int]:
    shutil.copytree(overshot, folder)
    return Run(folder, model, data, **OVERSHOOTS, keep="best"), int((folder / "best").read_text())


def test_the_best_adapters_are_the_result(overshot: Path, tmp_path: Path, model: Path, data: Path) -> None:
    """`keep: best` is asked for because the last are worse. A run that is started again after its end says the same."""
    run, best = copy_of(overshot, tmp_path / "run", model, data)
    assert run.go() is Outcome.DONE
    assert (run.done["kept"], run.done["kept_step"]) == ("best", best)
    assert same(run.adapters, run.masters_of(best))


def test_keep_last_is_the_end(overshot: Path, tmp_path: Path, model: Path, data: Path) -> None:
    """The same run's last weights; `keep` shapes no training and may change."""
    run, _ = copy_of(overshot, tmp_path / "run", model, data)
    assert run.go(keep="last") is Outcome.DONE
    assert (run.done["kept"], run.done["kept_step"]) == ("last", 8)
    assert same(run.adapters, run.masters_of(8))


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_without_a_whole_best_checkpoint_the_last_is_the_result_and_it_is_said(
    overshot: Path, tmp_path: Path, model: Path, data: Path, harm: str
) -> None:
    """A run of days may not fail at its end for that; nor pretend."""
    run, best = copy_of(overshot, tmp_path / "run", model, data)
    folder = checkpoint.folder_of(run.folder.checkpoints, best)
    if harm == "gone":
        shutil.rmtree(folder)
    else:
        (folder / checkpoint.ARRAYS).write_bytes(b"cut")
    assert run.go() is Outcome.DONE
    (event,) = run.said("checkpoint.damaged")
    assert event["path"] == str(folder)
    assert (run.done["kept"], run.done["kept_step"]) == ("last", 8)
    assert same(run.adapters, run.masters_of(8))


def test_early_stopping_ends_the_run_with_the_best(tmp_path: Path, model: Path, data: Path) -> None:
    """And it is the end: started again, nothing more is trained."""
    keys = OVERSHOOTS | {"iters": 40, "early_stopping": {"patience": 2}, "keep": "best", "test": True}
    run = Run(tmp_path / "run", model, data, **keys)
    assert run.go() is Outcome.DONE
    losses = {event["step"]: event["loss"] for event in run.said("validation") if event["split"] == "valid"}
    best = min(losses, key=lambda step: losses[step])
    (event,) = run.said("training.early_stopped")
    assert (event["step"], event["best_step"], event["best_loss"]) == (best + 4, best, losses[best])
    assert max(losses) == best + 4
    assert run.done["kept_step"] == best
    assert [e["split"] for e in run.said("validation")][-1] == "test"
    assert run.go() is Outcome.DONE
    assert [e["split"] for e in run.said("validation")] == ["test"]
    assert (run.done["step"], run.done["kept_step"]) == (best + 4, best)


def test_a_stop_while_the_model_answers_at_the_end_loses_no_answer(tmp_path: Path, model: Path, data: Path) -> None:
    """A run that says it is done is asked nothing any more, and its report compares before and after."""
    keys = {"iters": 2, "steps_per_eval": 100, "samples": 2, "test": True}
    undisturbed = Run(tmp_path / "undisturbed", model, data, **keys)
    assert undisturbed.go() is Outcome.DONE
    run = Run(tmp_path / "run", model, data, **keys)
    assert run.go(stop_at={"event": "sample.answered", "when": "after"}) is Outcome.STOPPED
    assert run.events[-1]["event"] == "training.stopped"
    assert run.go() is Outcome.DONE
    assert answers_after(run) == answers_after(undisturbed)
    assert digest(run.folder.path) == digest(undisturbed.folder.path)


def answers_after(run: Run) -> list[tuple[str, str]]:
    answered = [event for event in run.said("sample.answered") if event["when"] == "after"]
    assert len(answered) == 2
    return [(event["prompt"], event["answer"]) for event in answered]


def change_data(folder: Path, data: Path) -> Path:
    shutil.copytree(data, folder)
    return folder


def test_data_that_changed_after_the_job_was_accepted_is_refused_or_starts_over(
    tmp_path: Path, model: Path, data: Path
) -> None:
    """As the job says, and with the new rows; before there is a checkpoint and after."""
    mine = change_data(tmp_path / "data", data)
    run = Run(tmp_path / "run", model, mine, iters=4, steps_per_eval=100)
    assert run.go() is Outcome.DONE
    first = run.adapters
    rows = (mine / "train.jsonl").read_text().splitlines()
    (mine / "train.jsonl").write_text("\n".join(rows[:9]) + "\n")
    with pytest.raises(DataRejected, match=r"train\.jsonl is not what it was") as caught:
        run.go()
    assert "on_change: restart" in str(caught.value.remedy)
    assert run.go(on_change="restart") is Outcome.DONE
    (event,) = run.said("training.restarted")
    assert event["changed"] == ["data.train"]
    assert run.said("data.loaded")[0]["train"] == 9
    fresh = Run(tmp_path / "fresh", model, mine, iters=4, steps_per_eval=100)
    assert fresh.go() is Outcome.DONE
    assert same(run.adapters, fresh.adapters)
    assert not same(run.adapters, first)


def test_a_run_that_is_short_of_memory_recomputes_layers_and_learns_the_same(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the limit asks for, and no fewer when it is resumed with a higher one."""
    model = tiny.make_model(tmp_path / "model", layers=3)
    keys = {"iters": 6, "optimizer": "sgd", "learning_rate": 0.05, "save_every": 2, "num_layers": 2}
    plain = Run(tmp_path / "plain", model, data, **keys)
    assert plain.go() is Outcome.DONE
    assert not plain.said("recomputation.chosen")
    run = Run(tmp_path / "run", model, data, **keys, memory={"limit_gb": 1e-4})
    recomputed: list[int] = []
    monkeypatch.setattr(choices, "checkpoint_layers", lambda layers: recomputed.append(len(layers)))
    assert run.go() is Outcome.DONE
    (event,) = run.said("recomputation.chosen")
    assert (event["layers"], event["of"], recomputed) == (2, 2, [2])
    assert run.go(memory=Memory()) is Outcome.DONE
    assert recomputed == [2, 2]
    assert not run.said("recomputation.chosen")
    monkeypatch.undo()
    again = Run(tmp_path / "again", model, data, **keys, memory={"limit_gb": 1e-4})
    assert again.go() is Outcome.DONE
    for name, array in plain.adapters.items():
        np.testing.assert_allclose(np.array(again.adapters[name]), np.array(array), atol=1e-5, err_msg=name)
    assert json.loads(run.folder.runtime.read_bytes())["chosen"]["recomputed"] == 2


@pytest.mark.skipif(not on_cpu(), reason="elsewhere weights stay quantized")
@pytest.mark.parametrize("fitted", [True, False])
def test_a_resumed_run_has_the_weights_in_the_form_that_it_began_with(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, fitted: bool
) -> None:
    """Another program may take or free memory between two processes of a run; the run must not come out otherwise."""
    fits = [fitted]
    monkeypatch.setattr("qlora_engine.training.model._fits_dequantized", lambda _: fits[-1])
    undisturbed = Run(tmp_path / "undisturbed", model, data)
    assert undisturbed.go() is Outcome.DONE
    run = Run(tmp_path / "run", model, data)
    assert run.go(stop_at={"event": "training.step", "step": 5}) is Outcome.STOPPED
    fits.append(not fitted)
    assert run.go() is Outcome.DONE
    assert run.said("training.resumed")
    assert [event["dequantized"] for event in run.said("model.loaded")] == [fitted]
    assert digest(run.folder.path) == digest(undisturbed.folder.path)


@pytest.mark.skipif(not on_cpu(), reason="elsewhere weights stay quantized")
def test_a_run_that_starts_over_with_another_model_asks_anew_whether_it_fits(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a small model took as float32 says nothing about a large one."""
    run = Run(tmp_path / "run", model, data, iters=2)
    assert run.go() is Outcome.DONE
    monkeypatch.setattr("qlora_engine.training.model._fits_dequantized", lambda _: False)
    other = Run(tmp_path / "run", tiny.make_model(tmp_path / "large", layers=2), data, iters=2, on_change="restart")
    assert other.go() is Outcome.DONE
    assert other.said("training.restarted")
    assert [event["dequantized"] for event in other.said("model.loaded")] == [False]


def test_a_job_that_is_refused_leaves_what_its_run_has_chosen(tmp_path: Path, model: Path, data: Path) -> None:
    """Its model put back, it goes on as it was, to the same bits: nothing may be measured for another one."""
    undisturbed, run = Run(tmp_path / "undisturbed", model, data), Run(tmp_path / "run", model, data)
    assert undisturbed.go() is Outcome.DONE
    assert run.go(stop_at={"event": "training.step", "step": 5}) is Outcome.STOPPED
    before = run.folder.runtime.read_bytes()
    other = Run(tmp_path / "run", tiny.make_model(tmp_path / "model", layers=2), data)
    with pytest.raises(ResumeRefused, match="model"):
        other.go()
    assert run.folder.runtime.read_bytes() == before
    assert run.go() is Outcome.DONE
    assert not run.said("packing.chosen")
    assert digest(run.folder.path) == digest(undisturbed.folder.path)


@pytest.mark.parametrize("why", ["no checkpoint", "starts over"])
def test_a_run_that_begins_again_chooses_again(tmp_path: Path, model: Path, data: Path, why: str) -> None:
    """What it has chosen was for a model and rows that it may not have any more."""
    run = Run(tmp_path / "run", model, data, iters=2)
    assert run.go() is Outcome.DONE
    assert run.said("packing.chosen")
    chosen = json.loads(run.folder.runtime.read_bytes())
    run.folder.runtime.write_text(json.dumps(chosen | {"chosen": chosen["chosen"] | {"products": {"of": "another"}}}))
    if why == "no checkpoint":
        shutil.rmtree(run.folder.checkpoints)
        assert run.go() is Outcome.DONE
    else:
        assert run.go(seed=7, on_change="restart") is Outcome.DONE
    assert run.said("packing.chosen")
    assert set(json.loads(run.folder.runtime.read_bytes())["chosen"]) == {"packing", "form"}


def test_training_begins_with_an_empty_reserve(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers as large as weights fit no batch, and beside them there would be no room for those that do."""
    monkeypatch.setattr("qlora_engine.training.memory.CPU_CACHE", 1 << 30)
    reserve: dict[str, int] = {}

    def noted(where: str, function: Any) -> Any:
        def wrapped(*arguments: Any, **keys: Any) -> Any:
            reserve[where] = mx.get_cache_memory()
            return function(*arguments, **keys)

        return wrapped

    monkeypatch.setattr(Choices, "packing", noted("measured", Choices.packing))
    monkeypatch.setattr(Checkpoints, "begin", noted("set up", Checkpoints.begin))
    assert Run(tmp_path / "run", model, data, iters=2).go() is Outcome.DONE
    assert reserve["measured"] > 0
    assert reserve["set up"] == 0


def test_what_a_run_has_chosen_it_keeps(tmp_path: Path, model: Path, data: Path) -> None:
    """Another layout would round differently, and a resumed run would end with other weights."""
    run = Run(tmp_path / "run", model, data, iters=4, save_every=2)
    assert run.go() is Outcome.DONE
    (event,) = run.said("packing.chosen")
    chosen = json.loads(run.folder.runtime.read_bytes())["chosen"]["packing"]
    assert chosen["joined"] == event["joined"]
    assert run.go() is Outcome.DONE
    assert not run.said("packing.chosen")
    assert run.go(packing="off", on_change="restart") is Outcome.DONE
    assert run.said("training.restarted")
    assert [event["why"] for event in run.said("packing.chosen")] == ["the job says so"]


def test_what_a_wide_row_costs_is_measured_once_and_disturbs_nothing(tmp_path: Path, model: Path) -> None:
    """A long run measures at its start; the next like it on this machine remembers, and both learn the same."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [json.dumps({"text": "abcd " * (2 + row % 2 if row % 4 else 15)}) for row in range(24)]
    (data / "train.jsonl").write_text("\n".join(rows) + "\n")
    keys = {"iters": 100, "val_batches": 0, "optimizer": "sgd", "lora_parameters": {"rank": 4, "dropout": 0.1}}
    found = []
    for name in ("first", "second"):
        run = Run(tmp_path / name, model, data, **keys)
        assert run.go(known=Measured(tmp_path / "measured.json")) is Outcome.DONE
        (event,) = run.said("packing.chosen")
        assert (event["joined"], event["why"]) == (True, "as measured")
        found.append((event["seconds_alone"], event["seconds_joined"], run.adapters))
    assert found[0][:2] == found[1][:2]
    assert same(found[0][2], found[1][2])


def test_a_run_that_runs_out_of_memory_ends_with_the_same_adapters(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down the ladder from its checkpoint: each process ends, and the next goes on in a way that needs less."""
    keys = {"iters": 7, "optimizer": "sgd", "learning_rate": 0.05, "save_every": 2}
    through = Run(tmp_path / "through", model, data, **keys)
    assert through.go() is Outcome.DONE
    whole = TrainingStep.start
    calls = 0

    def fails(self: TrainingStep, targets: Targets, key: mx.array) -> StartedMicroBatch:
        nonlocal calls
        calls += 1
        if calls in (4, 9):
            raise RuntimeError("[malloc] Unable to allocate 1099511627776 bytes.")
        return whole(self, targets, key)

    monkeypatch.setattr(TrainingStep, "start", fails)
    run = Run(tmp_path / "run", model, data, **keys)
    rungs = []
    for attempt in (1, 2):
        assert run.go(attempt) is Outcome.SMALLER
        (event,) = run.said("ladder.rung")
        rungs.append((event["rung"], event["reason"], event["effective_batch"]))
    assert run.go(3) is Outcome.DONE
    reason = "[malloc] Unable to allocate 1099511627776 bytes."
    assert rungs == [("recompute", reason, 4), ("split", reason, 4)]
    assert (run.done["step"], run.done["tokens"]) == (through.done["step"], through.done["tokens"])
    for name, array in through.adapters.items():
        np.testing.assert_allclose(np.array(run.adapters[name]), np.array(array), atol=1e-5, err_msg=name)
    kept = json.loads((run.folder.ladder).read_bytes())
    assert kept["layout"] == {"recompute": True, "rows": 1, "longest": 128}


def test_a_run_that_is_asked_to_stop_says_where_and_is_done_the_next_time(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a checkpoint, and without calling what it has a result."""
    run = Run(tmp_path / "run", model, data, iters=6)
    whole = TrainingStep.start

    def stops(self: TrainingStep, targets: Targets, key: mx.array) -> StartedMicroBatch:
        run.stop.request("the test")
        return whole(self, targets, key)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingStep, "start", stops)
        # The second micro-batch of the first window is not begun: the stop comes before it.
        assert run.go() is Outcome.STOPPED
    assert run.said("training.stopped")[0]["step"] == 0
    assert run.said("training.done") == []
    assert run.go() is Outcome.DONE
    assert run.done["step"] == 6


def test_when_nothing_is_left_to_do_without_the_run_fails_with_what_to_try(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with a traceback of the allocator's, and not by starting for ever."""

    def fails(*_: Any) -> StartedMicroBatch:
        raise RuntimeError("[malloc] Unable to allocate 1099511627776 bytes.")

    monkeypatch.setattr(TrainingStep, "start", fails)
    run = Run(tmp_path / "run", model, data, iters=2, batch_size=1, grad_checkpoint=True)
    with pytest.raises(OutOfMemory, match="Unable to allocate") as caught:
        run.go()
    assert "max_seq_length" in str(caught.value.remedy)


def test_an_error_of_another_kind_is_no_want_of_memory(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug that sent a job down the ladder would be hidden by it."""

    def fails(*_: Any) -> StartedMicroBatch:
        raise RuntimeError("[matmul] Last dimension of first input must match")

    monkeypatch.setattr(TrainingStep, "start", fails)
    run = Run(tmp_path / "run", model, data, iters=2)
    with pytest.raises(RuntimeError, match="matmul"):
        run.go()
    assert not run.folder.ladder.exists()


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "chosen": {"pack', b"[]", b"{}"])
def test_a_record_of_the_environment_that_cannot_be_read_is_an_error_with_a_remedy(
    tmp_path: Path, model: Path, data: Path, content: bytes
) -> None:
    """Measured anew, the rest of the run might round otherwise than its beginning, which is for a person to say."""
    run = Run(tmp_path / "run", model, data)
    run.go(stop_at={"event": "training.step", "step": 4})
    run.folder.runtime.write_bytes(content)
    assert blas.recorded(run.folder) is None  # what is needed before training begins does not stumble over it
    with pytest.raises(RunDamaged, match=r"runtime\.json"):
        runtime.recorded(run.folder, runtime.FORMAT)
    with pytest.raises(RunDamaged, match=r"runtime\.json") as caught:
        run.go()
    assert "Delete it" in str(caught.value.remedy)
    run.folder.runtime.unlink()
    assert run.go() is Outcome.DONE
    assert run.said("training.resumed")


@pytest.mark.parametrize("content", [None, b"", b'{"format": 1, "spec": {"mod', b"[]", b"{}"])
def test_a_resolved_job_that_cannot_be_read_ends_its_job(tmp_path: Path, content: bytes | None) -> None:
    """As a refusal of the system, a file that is missing would be waited for without end."""
    spec = tmp_path / "spec.json"
    if content is not None:
        spec.write_bytes(content)
    with pytest.raises(RunDamaged, match=r"spec\.json") as caught:
        ResolvedJob.needed(spec)
    assert caught.value.exit_code is Exit.DATAERR
    spec.write_text('{"format": 99}')
    with pytest.raises(NewerFormat):
        ResolvedJob.needed(spec)


def test_validation_rows_without_targets_neither_stop_a_run_nor_are_its_best(
    tmp_path: Path, model: Path, data: Path
) -> None:
    """Prompts that fill max_seq_length leave no answer: a run that ended there had not trained at all, and was done."""
    copy = shutil.copytree(data, tmp_path / "data")
    (copy / "valid.jsonl").write_text(json.dumps({"prompt": "9" * 80, "completion": "odd"}) + "\n")
    keys = {"mask_prompt": True, "max_seq_length": 64, "steps_per_eval": 2, "keep": "best"}
    run = Run(tmp_path / "run", model, copy, iters=6, early_stopping={"patience": 1}, **keys)
    assert run.go() is Outcome.DONE
    assert [event["tokens"] for event in run.said("validation")] == [0, 0, 0, 0]
    assert run.said("training.early_stopped") == []
    assert (run.done["step"], run.done["kept"], run.done["loss_after"]) == (6, "last", None)
