"""The bench's arithmetic, its order, the jobs that it gives to both trainers, and what it refuses at once."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_client.cli import main
from qlora_engine.bench import jobs
from qlora_engine.bench.jobs import BenchJob, read_bench_job
from qlora_engine.bench.result import (
    BenchResult,
    Comparison,
    Measurement,
    Pair,
    Report,
    Trainer,
    enough,
    speed,
    steady,
)
from qlora_engine.bench.run import COMPARED, Bench, order
from qlora_engine.bench.trainer import Effort, Reading
from qlora_engine.job import jobfile
from qlora_engine.job.errors import JobRejected
from qlora_engine.job.lock import held
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.validate import validate
from support import tiny

TS = "2026-11-22T14:00:{:06.3f}+00:00"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its data, and a job file."""
    folder = tmp_path_factory.mktemp("bench")
    tiny.make_model(folder / "model")
    tiny.make_data(folder / "data")
    tiny.write_job(folder / "job.json", tiny.job(folder / "model", folder / "data", epochs=3, iters=None))
    return folder


@pytest.fixture
def bench_job(made: Path, tmp_path: Path) -> BenchJob:
    return read_bench_job(made / "job.json", {}, home=tmp_path / "home", work=tmp_path)


def run(trainer: Trainer, tokens_per_second: float, peak: float = 1.0) -> Measurement:
    return Measurement(trainer, tokens_per_second, 100, 1.0, 3, peak, 2 * peak)


def pairs(*speeds: tuple[float, float]) -> list[Pair]:
    return [Pair(run("engine", ours), run("mlx_lm", theirs)) for ours, theirs in speeds]


# Arithmetic


def test_the_ratio_is_the_median_of_the_pairs() -> None:
    """One run beside a busy neighbour may not decide the result, nor may the speeds of different pairs be mixed."""
    slow_machine = Comparison("padded", pairs((20, 2), (12, 1), (100, 4)))
    result = BenchResult([slow_machine, Comparison("packed", pairs((3, 1)))]).as_dict()
    assert (result["ratio"], result["ratio_min"], result["ratio_max"]) == (12, 10, 25)
    assert result["case"] == "padded"
    assert [comparison["ratio"] for comparison in result["comparisons"]] == [12, 3]
    assert [pair["ratio"] for pair in result["comparisons"][0]["pairs"]] == [10, 12, 25]
    assert result["comparisons"][0]["engine"]["tokens_per_second"] == 20
    json.dumps(result, allow_nan=False)


def test_memory_is_the_highest_of_all_runs() -> None:
    """What a job needs is what it needs at its worst."""
    comparison = Comparison("padded", [Pair(run("engine", 1, peak), run("mlx_lm", 1, 1)) for peak in (1, 3, 2)])
    assert comparison.peak_gb("engine") == 3
    assert comparison.process_gb("engine") == 6


def test_warm_up_does_not_count() -> None:
    """The first report waits for loading and compilation; those within the warm-up for further shapes."""
    reports = [Report(at, targets, 2.0) for at, targets in ((100, 9), (101, 9), (102, 9), (104, 5), (106, 7))]
    assert speed(reports, 3.0) == (12, 4.0)
    assert speed(reports, 0.0) == (30, 8.0)
    assert not enough(reports, warm_up=3.0, seconds=4.1)
    assert enough(reports, warm_up=3.0, seconds=4.0)


@pytest.mark.parametrize("count", [0, 1])
def test_the_first_report_is_never_a_measurement(count: int) -> None:
    """However short the warm-up is, the first compilation is no training."""
    reports = [Report(1.0, 5, 9.0)] * count
    assert not steady(reports, 0.0)
    assert not enough(reports, warm_up=0.0, seconds=0.0)


def report(at: float, tokens: int, **more: float) -> dict[str, Any]:
    return {"event": "training.report", "ts": TS.format(at), "tokens": tokens, "peak_gb": 1.0, **more}


def test_the_engine_is_timed_by_the_wall_clock() -> None:
    """Between two reports the engine also makes batches and writes events; leaving that out would flatter it."""
    reading = Reading()
    for event in (report(1, 50), report(3.5, 150)):
        reading.take(event)
    assert [(r.targets, r.seconds) for r in reading.reports[1:]] == [(100, 2.5)]


def test_mlx_lm_is_timed_by_its_own_clock() -> None:
    """Its trainer does not count the time in which it tokenizes rows, so neither may the bench."""
    reading = Reading()
    for event in (report(1, 50, seconds=0.5), report(3.5, 150, seconds=2.0)):
        reading.take(event)
    assert reading.reports[1].seconds == 2.0


def test_a_trainer_that_starts_again_is_measured_again() -> None:
    """An engine that runs out of memory goes on in another way in a new process, whose speed is what counts."""
    reading = Reading()
    for event in (report(1, 50), report(2, 150), {"event": "training.started", "backend": "cpu"}, report(9, 50)):
        reading.take(event)
    assert [r.targets for r in reading.reports] == [50]
    assert reading.machine["backend"] == "cpu"


# Order


def test_trainers_alternate_and_every_other_pair_is_reversed() -> None:
    """A machine that slows down as it warms would favour whoever always comes first."""
    turns = [(pair, turn.trainer) for pair, turn in order(["padded"], 3)]
    assert turns == [
        (0, "mlx_lm"),
        (0, "engine"),
        (1, "engine"),
        (1, "mlx_lm"),
        (2, "mlx_lm"),
        (2, "engine"),
    ]


def test_mlx_lm_runs_once_a_pair_on_the_same_rows() -> None:
    """The slower trainer would take most of an hour twice for the same number."""
    turns = [turn for _, turn in order(["padded", "packing off", "packed"], 1)]
    assert len(turns) == len(set(turns)) == 5
    assert COMPARED["padded"][0] is COMPARED["packing off"][0]


# Jobs


def test_both_trainers_get_the_same_job(bench_job: BenchJob, tmp_path: Path) -> None:
    """A ratio between different jobs means nothing: model, rows, documents an update and adapters must agree."""
    ours, theirs = bench_job.for_engine(5), bench_job.for_mlx_lm(5, tmp_path / "adapters")
    same = ("model", "data", "batch_size", "grad_accumulation_steps", "num_layers", "max_seq_length", "seed")
    assert [ours[key] for key in same] == [theirs[key] for key in same]
    assert ours["seed"] == 5
    assert theirs["lora_parameters"] == {"rank": 4, "scale": 8.0, "dropout": 0.0}


def test_the_engines_job_is_a_valid_one_without_an_end(bench_job: BenchJob) -> None:
    """Nothing but training may lie between two reports, and whoever measures ends the run."""
    spec = validate(jobfile.parse(json.dumps(bench_job.for_engine(0)), "job.json"))
    assert (spec.epochs, spec.iters, spec.val_batches, spec.samples) == (None, jobs.WITHOUT_END, 0, 0)
    assert spec.steps_per_report % spec.grad_accumulation_steps == 0
    assert spec.save_steps == jobs.WITHOUT_END


def test_mlx_lm_gets_the_scale_that_it_understands(made: Path, tmp_path: Path) -> None:
    """It ignores `rank_stabilized` and would train with another scale."""
    lora = {"rank": 4, "scale": 8.0, "rank_stabilized": True, "keys": ["self_attn.q_proj"]}
    job = read_bench_job(made / "job.json", {"lora_parameters": lora}, home=tmp_path / "home", work=tmp_path)
    known = {"rank": 4, "scale": 16.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    assert job.for_mlx_lm(0, tmp_path)["lora_parameters"] == known


@pytest.mark.parametrize("suffix", ["yaml", "toml"])
def test_a_job_file_may_hold_a_time_when_its_model_is_another(made: Path, tmp_path: Path, suffix: str) -> None:
    """A time is a value that JSON does not have."""
    at = 'model = "m"\nnot_before = 2026-12-24 18:00:00\n' if suffix == "toml" else "not_before: 2026-12-24 18:00:00\n"
    (tmp_path / f"job.{suffix}").write_text(at)
    values = {"model": str(made / "model"), "data": str(made / "data")}
    job = read_bench_job(tmp_path / f"job.{suffix}", values, home=tmp_path / "home", work=tmp_path)
    assert (job.resolved.model_path, job.data) == (str(made / "model"), made / "data")
    assert job.spec.not_before is not None


def test_a_folder_of_data_replaces_a_data_set_of_the_hub(made: Path, tmp_path: Path) -> None:
    """The refusal of such a job says to name one, and `hf_dataset` goes before `data`."""
    (tmp_path / "job.yaml").write_text(f"model: {made / 'model'}\nhf_dataset: {{path: owner/name}}\n")
    values = {"data": str(made / "data")}
    job = read_bench_job(tmp_path / "job.yaml", values, home=tmp_path / "home", work=tmp_path)
    assert job.data == made / "data"


def test_what_is_wrong_with_a_value_beside_a_replaced_one_is_said_of_its_line(made: Path, tmp_path: Path) -> None:
    """The person looks into the file that they named."""
    (tmp_path / "job.yaml").write_text("model: m\nseed: -1\n")
    with pytest.raises(JobRejected) as refused:
        read_bench_job(tmp_path / "job.yaml", {"model": str(made / "model")}, home=tmp_path / "home", work=tmp_path)
    assert refused.value.where == "job.yaml, line 2"


def test_mlx_lm_is_given_every_character_as_it_is(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads its config as YAML, which knows nothing of the halves in which JSON writes some of them."""
    job = read_bench_job(made / "job.json", {"chat_feature": "🚀"}, home=tmp_path / "home", work=tmp_path)
    configs: list[Any] = []

    def measured(trainer: Trainer, command: list[str], *_: object, **__: object) -> tuple[Measurement, dict[str, Any]]:
        if trainer == "mlx_lm":
            configs.append(yaml.safe_load(Path(command[4]).read_text()))
        return run(trainer, 1.0), {}

    monkeypatch.setattr("qlora_engine.bench.run.measure", measured)
    Bench(job, ["padded"], 1, Effort(1, 1.0), tmp_path, tmp_path / "logs", "off", 0, lambda *_: None).run()
    assert [config["chat_feature"] for config in configs] == ["🚀"]


def test_the_benchs_own_job_is_the_same_every_time(tmp_path: Path) -> None:
    """Two who compare their numbers must have measured the same rows; four documents an optimizer step."""
    first, second = jobs.own_job(tmp_path / "a"), jobs.own_job(tmp_path / "b")
    rows = [(Path(job["data"]) / "train.jsonl").read_bytes() for job in (first, second)]
    assert rows[0] == rows[1]
    spec = JobSpec.model_validate(first)
    assert spec.batch_size * spec.grad_accumulation_steps == 4
    assert "The sum is" in json.loads(rows[0].splitlines()[0])["text"]


def test_full_rows_fill_the_window(bench_job: BenchJob, tmp_path: Path) -> None:
    """Padding in rows that stand for packed ones would make mlx_lm slower than whoever packs by hand sees it."""
    from mlx_lm.tokenizer_utils import load

    from qlora_engine.training.full_rows import write_full_rows

    tokenizer = load(Path(bench_job.resolved.model_path or ""))
    write_full_rows(bench_job.resolved, tokenizer, tmp_path, 6)
    rows = [json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert min(len(tokenizer.encode(row)) for row in rows) >= bench_job.spec.max_seq_length
    packed = jobs.full_rows(bench_job, tmp_path)
    assert packed.spec.mask_prompt is False
    assert packed.for_mlx_lm(0, tmp_path)["data"] == packed.for_engine(0)["data"] == str(tmp_path)


@pytest.mark.parametrize("mask", [False, True])
def test_targets_of_mlx_lms_rows_are_counted_by_the_engines_rule(made: Path, tmp_path: Path, mask: bool) -> None:
    """mlx_lm counts a padding token a row; one side's count may not be larger for the same documents."""
    from mlx_lm.tokenizer_utils import load

    from qlora_engine.training.baseline import Taken
    from qlora_engine.training.data import read_documents

    job = read_bench_job(made / "job.json", {"mask_prompt": mask}, home=tmp_path / "home", work=tmp_path).resolved
    file, tokenizer = job.data["train"], load(made / "model")
    expected = [d.targets for d in read_documents(Path(file.path), file.format, job.spec, tokenizer)]
    taken = Taken(job)
    taken.tokenizer = tokenizer
    rows = [json.loads(line) for line in Path(file.path).read_text().splitlines()]
    for row in (rows[3], rows[1], rows[3]):
        taken.add(row)
    assert taken.count() == expected[3] + expected[1] + expected[3]
    assert taken.count() == 0


# Refusals


@pytest.fixture
def lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("QLORAD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QLORAD_GPU_LOCK", str(tmp_path / "gpu.lock"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unknown-key.yaml").write_text("modle: smollm2\n")
    return tmp_path / "gpu.lock"


@pytest.mark.usefixtures("lock_file")
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["missing.yaml"], 66, "There is no file missing.yaml"),
        (["unknown-key.yaml"], 65, "Did you mean `model`?"),
        ([], 66, "qlora models add smollm2"),
        (["--model", "nothing"], 66, "`nothing` does not exist"),
        (["--case", "folded"], 64, "padded"),
        (["--plot", "bench.txt"], 73, ".svg"),
        (["--plot", "nowhere/bench.svg"], 73, "cannot be written"),
        (["--pairs", "0"], 64, "Usage"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    """Nobody waits minutes to read that the last thing could not be done."""
    assert main(["bench", *arguments]) == code
    output = capfd.readouterr()
    assert says in output.err
    assert "Traceback" not in output.err
    assert output.out == ""


def test_a_bench_does_not_run_beside_a_job(
    made: Path, lock_file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers would mean nothing, and the job would be slower or out of memory."""
    monkeypatch.setattr("qlora_client.bench.LOCK_WAIT", 0.1)
    with held(lock_file, {"pid": 4711, "job": "20261122-143501-sql-assistant"}):
        assert main(["bench", str(made / "job.json")]) == 75
    error = capfd.readouterr().err
    assert "in use by 20261122-143501-sql-assistant (process 4711)" in error
    assert "qlora cancel" in error


def test_a_plot_shows_every_case(tmp_path: Path) -> None:
    """A picture that leaves a case out would be believed."""
    from qlora_engine.bench import plot

    result = BenchResult([Comparison("padded", pairs((20, 2), (12, 1))), Comparison("packed", pairs((3, 1)))])
    plot.draw(result, tmp_path / "bench.svg")
    assert "<svg" in (tmp_path / "bench.svg").read_text()
    plot.draw(result, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_shows_every_case() -> None:
    """For a person: the ratio, from where to where, and the memory of both."""
    from rich.console import Console

    from qlora_client.bench import table

    output = io.StringIO()
    machine = {"device": "a \x1b[31mchip"}
    Console(file=output, width=160).print(table(BenchResult([Comparison("padded", pairs((20, 2)))], machine=machine)))
    text = output.getvalue()
    assert "10.00 × mlx_lm (padded; median of 1 pair, 10.00 to 10.00) on a chip" in text
    assert "20.0 tokens/s" in text


def test_the_resolved_job_of_a_bench_is_whole(bench_job: BenchJob, tmp_path: Path) -> None:
    """The processes of a bench read it back."""
    bench_job.resolved.store(tmp_path / "spec.json")
    assert ResolvedJob.load(tmp_path / "spec.json") == bench_job.resolved
