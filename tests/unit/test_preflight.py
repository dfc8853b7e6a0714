"""The estimate of memory and time before a job trains: pure arithmetic on a model's config."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.folder import Home
from qlora_engine.job.preflight.backends import CPU, CUDA
from qlora_engine.job.preflight.batch import Batch
from qlora_engine.job.preflight.changes import smallest_change
from qlora_engine.job.preflight.duration import Work, operations, speed_of_earlier, steps_of
from qlora_engine.job.preflight.judgement import Machine, fit
from qlora_engine.job.preflight.memory import Estimate, estimate, least_recomputation
from qlora_engine.job.preflight.shape import ModelShape, ShapeUnknown
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec

MISTRAL: dict[str, Any] = {
    "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
MIXTRAL = MISTRAL | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000}
QUANTIZED = MISTRAL | {"quantization": {"group_size": 64, "bits": 4}}


def of(spec: JobSpec, config: dict[str, Any] = QUANTIZED, *, width: int = 2048, rows: int = 100) -> Estimate:
    batch = Batch.widest(spec, rows=rows, longest=width + 1, targets=width, backend="cpu")
    return estimate(spec, ModelShape.of(config), batch, CUDA, dequantized=False)


def spec_of(**keys: Any) -> JobSpec:
    return JobSpec(**{"num_layers": -1, "max_seq_length": 2049, **keys})


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (MISTRAL, 7.25),
        (MIXTRAL, 46.7),
        ({**MISTRAL, "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_key_value_heads": 32,
          "vocab_size": 32064}, 3.82),
        ({**MISTRAL, "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072,
          "num_attention_heads": 16, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}, 0.6),
    ],
    ids=["mistral", "mixtral", "phi3", "qwen3"],
)  # fmt: skip
def test_a_model_is_as_large_as_its_makers_say(config: dict[str, Any], billions: float) -> None:
    """Weights are the largest part of most estimates."""
    assert ModelShape.of(config).parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_layers_quantized_to_other_widths_count_as_they_are() -> None:
    """Mixed quantizations are common: the embedding and the output layer often keep more bits."""
    mixed = QUANTIZED | {"quantization": {"group_size": 64, "bits": 4, "lm_head": {"group_size": 64, "bits": 8}}}
    shape = ModelShape.of(mixed)
    assert shape.bits is not None
    assert 4 < shape.bits < 4.2


@pytest.mark.parametrize(
    "config",
    [{}, {"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24}, MISTRAL | {"hidden_size": "many"},
     MISTRAL | {"vocab_size": 0}, MISTRAL | {"num_hidden_layers": True}],
)  # fmt: skip
def test_a_config_that_does_not_say_enough_is_called_unknown(config: dict[str, Any]) -> None:
    """An estimate from guessed widths would refuse jobs that run."""
    with pytest.raises(ShapeUnknown, match=r"config\.json"):
        ModelShape.of(config)


def test_a_vision_models_text_part_is_what_trains() -> None:
    """Such configs keep the widths in a section of their own."""
    inner = {key: value for key, value in MISTRAL.items() if key != "model_type"}
    assert ModelShape.of({"model_type": "mistral3", "text_config": inner}).layers == 32


@pytest.mark.parametrize(
    "less",
    [{"grad_checkpoint": True}, {"batch_size": 2}, {"num_layers": 8}, {"lora_parameters": {"rank": 2}}],
)
def test_what_should_need_less_memory_is_estimated_to(less: dict[str, Any]) -> None:
    """Advice that is built on the estimate must not make things worse."""
    before = spec_of(batch_size=4, lora_parameters={"rank": 64})
    assert of(spec_of(**{"batch_size": 4, "lora_parameters": {"rank": 64}, **less})).total < of(before).total


def test_the_cpu_keeps_the_attentions_probabilities() -> None:
    """They grow with the square of the length, which a GPU's kernel avoids."""
    shape, spec = ModelShape.of(MISTRAL), spec_of(batch_size=1)
    short, long = (Batch(1, width, width, recompute=False) for width in (1024, 4096))
    held = [estimate(spec, shape, batch, CPU, dequantized=True).parts["activations"] for batch in (short, long)]
    assert held[1] > 6 * held[0]
    assert of(spec, width=4096).parts["activations"] == pytest.approx(
        4 * of(spec, width=1024).parts["activations"], rel=0.6
    )


def test_no_more_layers_are_recomputed_than_the_memory_asks_for() -> None:
    """Recomputation costs a third of the time of each layer; half of them may be enough."""
    shape, spec = ModelShape.of(QUANTIZED), spec_of(batch_size=4, num_layers=-1)
    batch = Batch.widest(spec, rows=100, longest=2049, targets=2048, backend="cuda")
    layers = shape.layers

    def need(again: int) -> float:
        return estimate(spec, shape, batch.recomputed(again / layers), CUDA, dequantized=False).total

    needs = [need(again) for again in range(layers + 1)]
    assert needs[0] > needs[layers // 2] > needs[layers - 1]
    for again in (0, 1, layers // 2, layers - 1):
        found = least_recomputation(spec, shape, batch, CUDA, dequantized=False, limit=needs[again])
        assert found <= again
        assert needs[found] <= needs[again]
        assert found == 0 or needs[found - 1] > needs[again]
    assert least_recomputation(spec, shape, batch, CUDA, dequantized=False, limit=1e6) == layers


def test_changes_are_tried_from_the_cheapest_on() -> None:
    """Recomputation costs time alone, smaller micro-batches too; shorter rows and fewer layers learn less."""
    shape, spec = ModelShape.of(QUANTIZED), spec_of(batch_size=4, grad_accumulation_steps=2)
    batch = Batch.widest(spec, rows=100, longest=2049, targets=2048, backend="cuda")
    whole = estimate(spec, shape, batch, CUDA, dequantized=False).total
    found, limit = [], whole
    while limit > 0.4e9:
        limit *= 0.93
        change = smallest_change(spec, shape, batch, CUDA, dequantized=False, limit=limit)
        assert change is not None
        assert change.estimate is None or change.estimate.fits(limit)
        if not found or found[-1].text != change.text:
            found.append(change)
    said = [change.text for change in found]
    assert said[0] == "Set grad_checkpoint: true"
    assert "batch_size: 2 and grad_accumulation_steps: 4" in said[1]
    assert any("max_seq_length" in text for text in said)
    assert "smaller model" in said[-1]
    assert "GB would be enough." in str(found[0])


def test_a_job_that_fits_needs_no_change() -> None:
    """Nothing is advised where nothing is wrong."""
    shape, spec = ModelShape.of(QUANTIZED), spec_of()
    batch = Batch.widest(spec, rows=100, longest=100, targets=99, backend="cuda")
    assert smallest_change(spec, shape, batch, CUDA, dequantized=False, limit=1e12) is None


def test_what_cannot_fit_is_refused_and_what_may_is_not() -> None:
    """Refusing what would run is worse than a warning; accepting what cannot run costs a night."""
    spec, shape = spec_of(batch_size=4), ModelShape.of(QUANTIZED)
    batch = Batch.widest(spec, rows=100, longest=2049, targets=2048, backend="cuda")
    need = estimate(spec, shape, batch, CUDA, dequantized=False).total
    lower = [("layers are computed again", batch.recomputed(True))]

    def at(share: float, ladder: list[tuple[str, Batch]]) -> tuple[str, ...]:
        return fit(spec, shape, batch, Machine("cuda", int(share * need), "the device", 0), ladder).warnings

    assert at(1.3, []) == ()
    assert "may not be enough" in at(1.0, [])[0]
    assert "grad_checkpoint: true" in at(1.0, [])[0]
    assert "layers are computed again" in at(0.7, lower)[0]
    with pytest.raises(JobRejected, match="does not fit") as caught:
        at(0.7, [])
    assert "grad_checkpoint: true" in str(caught.value.remedy)


def test_a_rough_estimate_says_so_and_refuses_later() -> None:
    """A mixture of experts was not compared with measurements."""
    spec, shape = spec_of(), ModelShape.of(MIXTRAL)
    batch = Batch.widest(spec, rows=100, longest=513, targets=512, backend="cuda")
    need = estimate(spec, shape, batch, CUDA, dequantized=False).total
    warnings = fit(spec, shape, batch, Machine("cuda", int(0.75 * need), "the device", 0), []).warnings
    assert "mixture of experts" in warnings[0]
    assert "may not be enough" in warnings[1]


def test_the_batch_is_no_wider_than_the_rows_and_the_job_allow() -> None:
    """An estimate for max_seq_length, where no row is that long, would refuse jobs that fit."""
    spec = spec_of(batch_size=4, max_seq_length=2048)
    assert Batch.widest(spec, rows=100, longest=100, targets=99, backend="cuda").width == 128
    assert Batch.widest(spec, rows=100, longest=9000, targets=99, backend="cuda").width == 2048
    assert Batch.widest(spec, rows=3, longest=100, targets=99, backend="cuda").rows == 3


def test_time_is_taken_from_an_earlier_run_of_the_same_kind(tmp_path: Path) -> None:
    """What this machine did yesterday says more than arithmetic."""
    home = Home(tmp_path)
    job = ResolvedJob(spec=JobSpec(iters=100, batch_size=2), model_path="/m")
    other = ResolvedJob(spec=JobSpec(batch_size=4), model_path="/m")
    write_run(home, "20260101-000000-a", job, [100.0, 120.0, 5.0])
    write_run(home, "20260102-000000-b", other, [999.0])
    (home.runs / "20260103-000000-c").mkdir()
    speed = speed_of_earlier(job, home, "cpu")
    assert speed is not None
    assert speed.targets_per_second == 100.0
    assert speed.seconds(Work(steps=10, positions=0, targets=5000, validated=600)) == pytest.approx(50 + 2)
    assert "from a run" in speed.source
    assert speed_of_earlier(job, home, "cuda") is None


def write_run(home: Home, name: str, job: ResolvedJob, speeds: list[float]) -> None:
    run = home.run(name)
    run.path.mkdir(parents=True)
    run.spec.write_text(job.model_dump_json())
    run.runtime.write_text('{"backend": "cpu"}')
    events = [{"event": "training.report", "tokens_per_second": speed} for speed in speeds]
    events.append({"event": "validation", "tokens": 300, "seconds": 1.0})
    run.events.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "train')


def test_arithmetic_counts_what_is_computed() -> None:
    """28.4 GFLOP a token for the 7B shape with every layer trained, 42.6 with recomputation."""
    spec, work = spec_of(), Work(steps=1, positions=1000, targets=1000, validated=0)
    for recompute, each in ((False, 28.4e9), (True, 42.6e9)):
        batch = Batch(1, 1, 1, recompute=recompute)
        counted = operations(spec, ModelShape.of(MISTRAL), work, batch) / 1000
        assert counted == pytest.approx(each, rel=0.02)


def test_epochs_and_iterations_both_give_a_length() -> None:
    """1.1 × 10 is a little over 11 in binary."""
    assert steps_of(JobSpec(iters=7), 100) == 7
    assert steps_of(JobSpec(epochs=1.1, batch_size=10), 100) == 11


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("name", ["memory-cpu", "memory-cpu-drawn", "memory-cuda"])
def test_every_measured_peak_is_within_15_percent_of_its_estimate(name: str) -> None:
    """Constants may be changed, but not so that they no longer fit what was measured."""
    spec = importlib.util.spec_from_file_location("memory_benchmark", RESULTS.parent / "memory.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark
    spec.loader.exec_module(benchmark)
    rows = benchmark.read([RESULTS / f"{name}.jsonl"])
    assert len(rows) >= 6
    assert {row["case"]["name"]: row["error"] for row in rows if abs(row["error"]) > 0.15} == {}
