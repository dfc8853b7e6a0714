"""Which jobs can be fused, what is said of those that cannot, and what fusing needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_client.cli import main
from qlora_engine.job.errors import JobRejected, QloradError
from qlora_engine.job.examine import examine, examine_request
from qlora_engine.job.folder import GROUP_NAME, Home, RunFolder, member_ids, slug
from qlora_engine.job.fuse_spec import FuseSpec
from qlora_engine.job.preflight.fusing import fuse_need, judge
from qlora_engine.job.preflight.judgement import Machine
from qlora_engine.job.preflight.shape import ModelShape
from qlora_engine.job.record import JobRecord
from qlora_engine.job.resolved import ResolvedFuse, ResolvedJob, load_resolved
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.states import State
from qlora_engine.job.verdict import ExamineRequest

OLD, NEW = "20261122-100000-sql", "20261122-110000-sql"
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    "quantization": {"bits": 4, "group_size": 64},
}  # fmt: skip


def trained(home: Home, job_id: str, state: State = State.DONE, *, adapters: bool = True, **changes: Any) -> RunFolder:
    """The run folder of a job that trains, or has trained."""
    base = home.path / "base"
    base.mkdir(parents=True, exist_ok=True)
    (base / "config.json").write_text("{}")
    run = home.run(job_id)
    run.adapters.mkdir(parents=True)
    if adapters:
        (run.adapters / "adapters.safetensors").write_bytes(b"x")
    record = JobRecord.new(job_id, changes.pop("name", job_id[16:]))
    record.model_copy(update={"state": state, **changes}).store(run.state)
    ResolvedJob(spec=JobSpec(model="base"), model_path=str(base)).store(run.spec)
    return run


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def look(home: Home, text: str) -> ResolvedFuse:
    request = ExamineRequest(job_file="job.yaml", home=str(home.path), base=None, shown_as="job.yaml", text=text)
    job = examine_request(request)
    assert isinstance(job, ResolvedFuse)
    return job


def test_a_job_to_fuse_is_named_as_one_to_wait_for(home: Home) -> None:
    """By its id, by a part of it, or by its name, of which the newest is meant; and never one that fuses itself."""
    trained(home, OLD)
    trained(home, NEW)
    trained(home, "20261122-120000-fuse-sql", kind="fuse")
    assert look(home, "fuse: sql").source == NEW
    assert look(home, "fuse: 20261122-10").source == OLD
    assert look(home, f"fuse: {OLD}").source == OLD
    job = look(home, f"{{fuse: {OLD}, weights: adapters, dequantize: true, priority: 3}}")
    assert (job.model, job.model_path) == ("base", str(home.path / "base"))
    assert job.spec.in_16_bits


@pytest.mark.parametrize("name", ["poems", "a rather long name for a sweep of poems"])
def test_a_job_of_a_sweep_is_named_by_what_qlora_ls_shows(home: Home, name: str) -> None:
    """Its id has only the beginning of the sweep's name, and is cut where labels are long."""
    group = f"20261122-140000-{slug(name)[:GROUP_NAME]}"
    labels = ["rank=4", f"data=/{'long/' * 6} rank=8"]
    first, second = member_ids(group, labels)
    for job_id, label in zip((first, second), labels, strict=True):
        trained(home, job_id, name=f"{name} {label}", group=group)
    assert look(home, f"fuse: {name} rank=4").source == first
    assert look(home, f"fuse: {name} {labels[1]}").source == second


def test_a_resolved_job_of_either_kind_is_read_back(home: Home) -> None:
    """A run folder of before there were two kinds is one of training."""
    run = trained(home, OLD)
    assert isinstance(load_resolved(run.spec), ResolvedJob)
    job = look(home, f"fuse: {OLD}")
    job.store(run.path / "fuse.json")
    assert load_resolved(run.path / "fuse.json") == job


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.HELD, State.BLOCKED])
def test_a_job_that_has_not_ended_may_have_nothing_yet(home: Home, state: State) -> None:
    """The new one waits for it."""
    trained(home, OLD, state, adapters=False)
    assert look(home, "fuse: sql").source == OLD


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_what_a_job_had_learned_before_it_failed_can_be_fused(home: Home, state: State) -> None:
    """People cancel runs that have learned enough."""
    trained(home, OLD, state)
    assert look(home, "fuse: sql").source == OLD


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("fuse: haiku", "names 'haiku', and there is no such job", "accepted before this one"),
        ("fuse: '2026'", "2 jobs have an id that contains it", "Write the whole id"),
        ("fuse: empty", "20261122-130000-empty failed and has no adapters to fuse", "qlora retry"),
        ("fuse: fuse-sql", "is itself a job that fuses", "Name the job that trained"),
        ("{fuse: sql, weights: best}", "has no checkpoints any more", "Leave `weights` away"),
        ("{fuse: sql, add_as: smollm2}", "A model named smollm2 exists", "another name"),
        ("{fuse: sql, add_as: a/b}", "`add_as` is 'a/b'", "Correct"),
        ("{fuse: sql, export: gguf, add_as: x}", "`export` writes none", "Remove one"),
        ("{fuse: sql, export: onnx}", "`export` is 'onnx'", "Correct"),
        ("{fuse: sql, batch_size: 5}", "`batch_size` is not a key of a job that fuses", "Known keys: add_as, after"),
        ("{fuse: sql, dequantise: true}", "`dequantise` is not a key", "Did you mean `dequantize`?"),
        ("{fuse: sql, notify: nobody}", "nobody", "notify.toml"),
        ("fuse:", "`fuse` is missing", "Add it"),
    ],
)
def test_what_cannot_be_fused_is_refused_with_what_to_do(home: Home, text: str, what: str, remedy: str) -> None:
    """Found out when it is its turn, hours later, it would cost a night."""
    trained(home, OLD)
    trained(home, "20261122-130000-empty", State.FAILED, adapters=False)
    trained(home, "20261122-120000-fuse-sql", kind="fuse")
    (home.models / "smollm2").mkdir(parents=True)
    with pytest.raises(QloradError) as refused:
        look(home, text)
    assert what in refused.value.what
    assert remedy in str(refused.value.remedy)


def test_a_base_that_is_gone_is_named(home: Home) -> None:
    """Adapters are numbers to be added to something."""
    trained(home, OLD)
    (home.path / "base" / "config.json").unlink()
    with pytest.raises(JobRejected, match="The model that it was trained on is gone: base"):
        look(home, "fuse: sql")


def test_the_engine_alone_does_not_fuse(home: Home, tmp_path: Path) -> None:
    """It says how it is done instead of training with defaults."""
    trained(home, OLD)
    file = tmp_path / "fuse.yaml"
    file.write_text("fuse: sql\n")
    with pytest.raises(JobRejected, match="nothing is trained") as refused:
        examine(file, home=home.path, base=tmp_path)
    assert "qlora submit" in str(refused.value.remedy)


def machine(gigabytes: float) -> Machine:
    return Machine("metal", int(gigabytes * 1e9), "the device", int(gigabytes * 1e9))


def test_a_model_of_16_bits_needs_the_memory_of_one() -> None:
    """8 billion weights are 16 GB; as they were, a good quarter of that."""
    shape = ModelShape.of(LLAMA_8B)
    wide = fuse_need(FuseSpec(fuse="x", dequantize=True), JobSpec(), shape)
    assert wide.result == pytest.approx(16.1e9, rel=0.02)
    assert 1.0 < wide.memory / wide.result < 1.4
    narrow = fuse_need(FuseSpec(fuse="x"), JobSpec(), shape)
    assert narrow.result == pytest.approx(4.5e9, rel=0.02)
    assert fuse_need(FuseSpec(fuse="x", export="gguf"), JobSpec(), shape).result == wide.result


def test_what_does_not_fit_is_refused_and_what_may_not_is_said() -> None:
    """The estimate is compared with what may be used, and what is written with the room on the disk."""
    spec, shape = FuseSpec(fuse="x", dequantize=True), ModelShape.of(LLAMA_8B)
    need = fuse_need(spec, JobSpec(), shape)
    assert judge(need, spec, machine(64), int(1e12)) == ()
    (memory,) = judge(need, spec, machine(20), int(1e12))
    assert "Memory may not be enough" in memory
    (disk,) = judge(need, spec, machine(64), int(3e9))
    assert "3.0 GB free, and the result takes 16." in disk
    with pytest.raises(JobRejected, match="Fusing does not fit into memory") as refused:
        judge(need, spec, machine(8), int(1e12))
    assert "Without `dequantize`" in str(refused.value.remedy)


def test_the_files_of_a_resolved_job_name_what_others_need(home: Home) -> None:
    """`qlora clean` reads ids out of it: the run that is to be fused must stay until then."""
    trained(home, OLD)
    job = look(home, "fuse: sql")
    assert OLD in json.dumps(job.model_dump(mode="json"))


def test_a_job_that_fuses_has_no_report(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty page would look like a run that learned nothing."""
    monkeypatch.setenv("QLORAD_HOME", str(home.path))
    trained(home, OLD, kind="fuse")
    assert main(["report", "sql", "--no-open"]) == 65
    assert "so it has no curves" in capsys.readouterr().err
