"""`qlora init` and `qlora schema`: a file that is right from the start, and what editors know of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from qlora_client.cli import main
from qlora_client.first_job import FITTINGS, TOGETHER, VALID, FirstJob, fitting_for, model_to_propose
from qlora_engine.job import fuse_spec
from qlora_engine.job.errors import Exit
from qlora_engine.job.examine import examine
from qlora_engine.job.folder import Home
from qlora_engine.job.jobfile import parse
from qlora_engine.job.members import drafts, sweep_of
from qlora_engine.job.preflight.backends import BACKENDS
from qlora_engine.job.preflight.batch import Batch
from qlora_engine.job.preflight.memory import estimate
from qlora_engine.job.preflight.shape import ModelShape
from qlora_engine.job.schema import FILE, as_text, job_schema
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.validate import validate
from support import tiny
from support.service import ROOT

GIGA = 10**9
# What Metal recommends that a program uses, of all memory: two thirds on small machines, three quarters on large ones.
RECOMMENDED = 0.66

QWEN3: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "torch_dtype": "bfloat16", "num_key_value_heads": 8,
    "quantization": {"group_size": 64, "bits": 4},
}  # fmt: skip
# Width, layers, width of the feed-forward part, heads, and whether the output layer is the embedding.
WIDTHS = {
    "1.7B": (2048, 28, 6144, 16, True),
    "4B": (2560, 36, 9728, 32, True),
    "8B": (4096, 36, 12288, 32, False),
    "14B": (5120, 40, 17408, 40, False),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in list(os.environ):
        if name.startswith("QLORAD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.make_model(folder)
    return folder


# The job file


def test_what_it_writes_is_a_job_as_it_stands(home: Home, model: Path, tmp_path: Path) -> None:
    """A first file that is refused would be the last."""
    assert main(["init", str(tmp_path / "first"), "--model", str(model)]) == 0
    job = examine(tmp_path / "first" / "job.yaml", home=home.path, base=tmp_path / "first")
    assert (job.spec.name, job.model_path) == ("first", str(model))
    assert job.data["valid"].rows == len(VALID)
    assert job.spec.mask_prompt
    spec = job.spec
    assert (spec.steps_per_report, spec.eval_every, spec.save_steps, spec.max_seq_length) == (20, 100, 200, 512)
    assert spec.batch_size * spec.grad_accumulation_steps == TOGETHER


@pytest.mark.parametrize("name", ["nomodel", "./nowhere", "a/b/c", "~/nowhere"])
def test_a_model_that_can_be_none_is_refused_without_questions_too(
    name: str, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file would only be refused later, by `qlora submit`."""
    assert main(["init", str(tmp_path / "first"), "--model", name, "--yes"]) == Exit.NOINPUT
    assert f"No model and no folder is called {name!r}" in capsys.readouterr().err
    assert not (tmp_path / "first").exists()


def test_it_takes_data_that_is_there_and_masks_only_what_has_prompts(
    home: Home, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mask_prompt` on plain text is refused; rows of a user are not to be touched."""
    rows = tmp_path / "my rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text('{"text": "a row of plain text"}\n')
    asked = [
        "init",
        str(tmp_path / "first"),
        "--model",
        str(model),
        "--data",
        "../my rows",
        "--name",
        "Büro 🚀: 1\x85",
        "--json",
    ]
    assert main(asked) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert [Path(path).name for path in written] == ["job.yaml", FILE]
    job = examine(tmp_path / "first" / "job.yaml", home=home.path, base=tmp_path / "first")
    assert (job.spec.name, job.spec.mask_prompt) == ("Büro 🚀: 1\x85", False)
    assert list(rows.iterdir()) == [rows / "train.jsonl"]


def test_a_file_that_is_there_is_replaced_only_when_asked_to(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody has written it."""
    (tmp_path / "job.yaml").write_text("mine")
    assert main(["init", str(tmp_path), "--yes"]) == 73
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "job.yaml").read_text() == "mine"
    assert main(["init", str(tmp_path), "--force"]) == 0
    assert validate(parse((tmp_path / "job.yaml").read_text(), "job.yaml")).batch_size


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"question": "?"}'])
def test_data_that_cannot_be_read_is_said_to_be_so_and_no_file_is_written(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    """The daemon would refuse it later."""
    (tmp_path / "data").mkdir()
    if content is not None:
        (tmp_path / "data" / "train.jsonl").write_text(content)
    assert main(["init", str(tmp_path)]) == 65
    assert "train.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "job.yaml").exists()


def test_a_model_that_is_here_is_proposed_before_one_that_must_be_fetched(home: Home, model: Path) -> None:
    """The first job should not begin with a download."""
    assert model_to_propose(home, 16 * GIGA) == "mlx-community/Qwen3-4B-4bit"
    home.models.mkdir(parents=True)
    (home.models / "tiny").symlink_to(model)
    assert model_to_propose(home, 16 * GIGA) == "tiny"


@pytest.mark.parametrize("memory", [8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192])
def test_what_is_proposed_for_a_machine_fits_into_it(tmp_path: Path, memory: int) -> None:
    """By the engine's own estimate, with a sixth to spare."""
    fitting = fitting_for(memory * GIGA)
    hidden, layers, inner, heads, tied = WIDTHS[fitting.model.split("-")[2]]
    shape = ModelShape.of(
        QWEN3
        | {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner}
        | {"num_attention_heads": heads, "tie_word_embeddings": tied}
    )
    job = FirstJob(tmp_path, fitting.model, "data", "first", memory * GIGA)
    spec = validate(parse(job.text(masks=False), "job.yaml"))
    batch = Batch.widest(spec, rows=1000, longest=512, targets=511, backend="metal")
    need = estimate(spec, shape, batch, BACKENDS["metal"], dequantized=False).total
    assert need * 1.16 < RECOMMENDED * memory * GIGA


def test_larger_machines_get_larger_models() -> None:
    """Each fitting is for somebody."""
    assert len({fitting_for(memory * GIGA) for memory in (8, 16, 32, 64)}) == len(FITTINGS)


# The schema


def test_the_schema_is_one_and_the_one_in_the_docs(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Editors would ignore it in silence; run `make docs`."""
    jsonschema.Draft202012Validator.check_schema(job_schema())
    assert (ROOT / "docs" / FILE).read_text() == as_text()
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == job_schema()


def test_every_key_says_what_it_means() -> None:
    """It is all the help that an editor gives."""
    schema = job_schema()
    parts = {"a job": schema["else"], "a job that fuses": schema["then"], **schema["$defs"]}
    for where, properties in ((name, part["properties"]) for name, part in parts.items()):
        for key, one in properties.items():
            assert one.get("description"), f"{where}.{key}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/job.yaml")), ids=lambda path: path.parent.name)
def test_the_examples_are_right_by_the_schema_and_by_the_daemon(path: Path) -> None:
    """A person who copies one must not be told by the editor that it is wrong."""
    check(path.read_text())
    text = parse(path.read_text(), "job.yaml")
    if (sweep := sweep_of(text)) is not None:
        assert drafts(text, sweep)
    else:
        validate(text)


def check(text: str) -> None:
    """By the schema, as an editor would that reads YAML 1.2."""
    jsonschema.Draft202012Validator(job_schema()).validate(parse(text, "job.yaml").values)


@pytest.mark.parametrize(
    "text",
    [
        "iters:",  # a key without a value means its default
        "{fuse: sql, export: gguf, priority: 3}",
        "{fuse: sql, add_as:, after: one}",
        "packing: on",
        "packing: auto",
        "after: one",
        "after: [one, two]",
        "max_runtime: 2h30m",
        "max_runtime: 90",
        "learning_rate: 1e-5",
        "learning_rate: 1",
        "optimizer_config: {adam: , adamw: {weight_decay: 0.1}}",
        "lr_schedule: {name: cosine_decay, arguments: [1e-5, 100], warmup: 3}",
        "samples: [hello]",
        "report_to: [wandb]",
        "memory: {limit_gb: 8}",
        "{memory: {limit_gb: , cleanup_every: }, lora_parameters: {rank: , keys: }, early_stopping: {patience: }}",
        "not_before: '2026-12-01 22:00'",
        "hf_dataset: {path: x/y}",
        "resume_adapter_file:",
    ],
)
def test_what_the_daemon_takes_the_schema_takes(text: str) -> None:
    """Red lines under a job that runs teach people to ignore red lines."""
    job = parse(text, "job.yaml")
    (fuse_spec.validate if fuse_spec.is_fusing(job.values) else validate)(job)
    check(text)


@pytest.mark.parametrize(
    "text",
    [
        "itres: 5", "iters: 0", "iters: many", "iters: 1.5", "train: false", "trust_remote_code: true", "optimizer: x",
        "lora_parameters: {alpha: 16}", "lora_parameters: {rank: 0}", "learning_rate: -1", "priority: 101",
        "lr_schedule: {name: cosine_decay}", "samples: 21", "packing: never", "model: ''", "seed: -1",
        "{fuse: sql, iters: 5}", "{fuse: sql, export: onnx}", "{fuse: ''}", "fuse:", "{fuse: sql, add_as: ../x}",
        "not_before: 1800000000", "lr_schedule: {name: , arguments: [1]}",
    ],
)  # fmt: skip
def test_what_the_daemon_refuses_the_schema_refuses(text: str) -> None:
    """Found while it is written, not when it is submitted."""
    with pytest.raises(jsonschema.ValidationError):
        check(text)


def test_an_editor_finds_the_schema_from_the_first_line(home: Home, tmp_path: Path) -> None:
    """The reference is relative: it works without a network, and moves with the folder."""
    assert main(["init", str(tmp_path / "first"), "--yes"]) == 0
    first, *_ = (tmp_path / "first" / "job.yaml").read_text().splitlines()
    assert first == "# yaml-language-server: $schema=job.schema.json"
    schema = json.loads((tmp_path / "first" / FILE).read_text())
    jsonschema.validate(yaml.safe_load((tmp_path / "first" / "job.yaml").read_text()), schema)
    assert JobSpec.model_fields.keys() == schema["else"]["properties"].keys()
