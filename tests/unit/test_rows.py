"""What is read is checked before anything is trained on it, and a run is the same wherever its tokens came from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from qlora_engine.job.datafiles import check_folder
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_engine.training import answer, checkpoint, hub_data, samples
from qlora_engine.training.documents import Documents
from qlora_engine.training.encode import Encoded
from qlora_engine.training.ladder import Layout
from qlora_engine.training.model import load_base, vocabulary
from qlora_engine.training.rows import check_tokens, read_data
from qlora_engine.training.run import Outcome, train
from qlora_engine.training.spool import Spool
from qlora_engine.training.stop import StopRequest
from qlora_engine.training.token_cache import TokenCache
from qlora_engine.training.token_rows import RowWriter, in_memory
from support import tiny

STEPS, STOP = 6, 3


def documents(*rows: list[int]) -> Documents:
    encoded = (Encoded(row, np.ones(len(row), np.bool_)) for row in rows)
    return Documents(in_memory(RowWriter(Spool(None)).filled(encoded)), 100)


def test_a_token_beyond_the_vocabulary_is_named_with_its_row() -> None:
    """MLX reads past the end of the embedding without a word, and the validation loss is anything."""
    check_tokens(documents([0, 63], []), "valid.jsonl", 64)
    with pytest.raises(DataRejected, match=r"Row 2 has token 64, but the model knows 64 tokens"):
        check_tokens(documents([1], [2, 64]), "valid.jsonl", 64)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_rows_of_the_hub_are_checked_as_those_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The guard takes care of training rows alone."""
    rows = {"train": [{"text": "fine"}], part: [{"text": "fine"}, {"text": "beyond"}]}
    monkeypatch.setattr(hub_data, "_load", lambda _name, split, _section: rows.get(split, []))
    model = tiny.make_model(tmp_path / "model")
    job = ResolvedJob(spec=JobSpec(model=str(model), data="owner/name", test=True), model_path=str(model), data={})
    base = load_base(job)
    known = vocabulary(base.model)
    base.tokenizer._tokenizer.add_tokens([f"more{n}" for n in range(known)] + ["beyond"])
    with pytest.raises(DataRejected, match=rf"Row 2 has token \d+, but the model knows {known} tokens") as caught:
        read_data(job, base, Layout.of(job.spec), beat=lambda: None, cache=None, log=EventLog([]))
    assert caught.value.where == f"owner/name ({part})"


@pytest.fixture(autouse=True)
def limits_of_before() -> Iterator[None]:
    """A run sets MLX's limits for its whole process, which other tests share."""
    cache = mx.set_cache_limit(1 << 30)
    yield
    mx.set_cache_limit(cache)


@pytest.mark.parametrize("row", [{"text": "hello there"}, {"prompt": "a", "completion": "b"}])
def test_what_was_trained_on_rows_of_the_hub_is_asked_in_their_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, str]
) -> None:
    """The job does not tell it, as it does of files, so the run writes down what it read."""
    monkeypatch.setattr(hub_data, "_load", lambda _name, split, _section: [row] * 4 if split == "train" else [])
    seen: list[list[int]] = []

    def noted(model: nn.Module, tokenizer: TokenizerWrapper, prompt: samples.Prompt, *more: Any) -> Iterator[int]:
        seen.append(prompt.tokens)
        return iter([])

    monkeypatch.setattr(samples, "generate", noted)
    monkeypatch.setattr(answer, "generate", noted)
    model, run = tiny.make_model(tmp_path / "model", layers=1), RunFolder(tmp_path / "run")
    run.path.mkdir()
    keys = tiny.job(model, tmp_path / "data", iters=2, batch_size=1) | {"data": "owner/name", "samples": ["Why"]}
    job = ResolvedJob(spec=JobSpec(**keys), model_path=str(model), data={})
    job.store(run.spec)
    log = EventLog([])
    assert train(job, run, attempt=0, log=log, metrics=log, stop=StopRequest(), cache=None) is Outcome.DONE
    list(answer.answers(answer.Question(run.path, ["Why"], max_tokens=3, temp=0.0, seed=0, best=False)))
    tokenizer = load_base(job).tokenizer
    templated = "<|im_start|>user\nWhy<|im_end|>\n<|im_start|>assistant\n"
    wanted = "Why" if "text" in row else templated
    assert [tokenizer.decode(tokens) for tokens in seen] == [wanted] * 4  # before and after, then base and adapted


class Run:
    """A run folder, what its processes said, and the losses that they found."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.folder, self.losses, self.loaded = RunFolder(folder), dict[int, float](), list[Event]()
        self.warnings: list[Event] = []
        self.folder.path.mkdir(parents=True)
        spec = JobSpec(
            **tiny.job(
                place / "model", place / "data", iters=STEPS, mask_prompt=True, max_seq_length=30, save_every=100
            )
        )
        data = check_folder(place / "data", spec)
        self.job = ResolvedJob(spec=spec, model_path=str(place / "model"), data=data)
        self.job.store(self.folder.spec)

    def go(self, cache: TokenCache | None, *, stop_at: int = 0) -> Outcome:
        """One process's part."""
        stop = StopRequest()

        def measure(event: Event) -> None:
            self.losses[event["step"]] = event["loss"]
            if event["step"] == stop_at:
                stop.request("the test")

        def hear(event: Event) -> None:
            if event["event"] == "data.loaded":
                self.loaded.append(event)
            if event["event"] == "tokens.not_kept":
                self.warnings.append(event)

        log, metrics = EventLog([hear]), EventLog([measure])
        return train(self.job, self.folder, attempt=0, log=log, metrics=metrics, stop=stop, cache=cache)

    @property
    def state(self) -> dict[str, mx.array]:
        """Weights and optimizer at the end."""
        return checkpoint.load_arrays(checkpoint.folder_of(self.folder.checkpoints, STEPS))

    def equals(self, other: Run) -> bool:
        ours, theirs = self.state, other.state
        same = ours.keys() == theirs.keys() and all(mx.array_equal(ours[name], theirs[name]) for name in ours)
        return same and self.losses == other.losses


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and rows of which some are cut."""
    folder = tmp_path_factory.mktemp("rows")
    tiny.make_model(folder / "model", layers=1)
    tiny.make_data(folder / "data", train=14, valid=4)
    return folder


@pytest.fixture(scope="module")
def plain(place: Path) -> Run:
    """A run that was never stopped and keeps no tokens."""
    run = Run(place / "plain", place)
    assert run.go(None) is Outcome.DONE
    assert run.loaded[0]["tokens_from"] == "text"
    assert run.loaded[0]["truncated"] > 0
    assert len(run.losses) == STEPS
    return run


def test_a_second_start_takes_the_tokens_and_trains_the_same(place: Path, plain: Run, quick_path: Path) -> None:
    """A cache that changes what is learned is worse than none."""
    cache = TokenCache(quick_path / "tokens", 10**9)
    first, second = Run(quick_path / "first", place), Run(quick_path / "second", place)
    assert first.go(cache) is second.go(cache) is Outcome.DONE
    assert [run.loaded[0]["tokens_from"] for run in (first, second)] == ["text", "cache"]
    assert first.equals(plain)
    assert second.equals(plain)
    same = ("train", "valid", "tokens", "supervised", "truncated", "lost_share", "nothing_to_learn", "steps")
    assert [second.loaded[0][name] for name in same] == [plain.loaded[0][name] for name in same]


@pytest.mark.parametrize("then", ["kept", "deleted", "damaged", "in memory"])
def test_a_resumed_run_is_the_same_wherever_its_tokens_come_from(
    place: Path, plain: Run, quick_path: Path, then: str
) -> None:
    """Between a stop and the resume a user may clear the cache, and a disk may lose it."""
    cache = TokenCache(quick_path / "tokens", 10**9)
    run = Run(quick_path / "run", place)
    assert run.go(cache, stop_at=STOP) is Outcome.STOPPED
    if then == "deleted":
        shutil.rmtree(cache.folder)
    elif then == "damaged":
        for index in cache.folder.glob("*/index.bin"):
            index.write_bytes(index.read_bytes()[::-1])
    assert run.go(None if then == "in memory" else cache) is Outcome.DONE
    assert [event["tokens_from"] for event in run.loaded] == ["text", "cache" if then == "kept" else "text"]
    assert run.equals(plain)
    assert not run.warnings


def test_a_run_whose_tokens_cannot_be_kept_says_so_and_trains(place: Path, plain: Run, quick_path: Path) -> None:
    """A full or read-only disk is no reason to refuse a job, and none to be silent."""
    (quick_path / "file").touch()
    run = Run(quick_path / "run", place)
    assert run.go(TokenCache(quick_path / "file" / "tokens", 10**9)) is Outcome.DONE
    assert run.equals(plain)
    assert {event["what"] for event in run.warnings} == {"Not a directory"}


def test_a_file_that_changes_while_it_is_read_is_refused(place: Path, quick_path: Path) -> None:
    """Tokens under the name of another content would be trained on for ever after."""
    from mlx_lm.utils import load_tokenizer

    from qlora_engine.training.token_source import TokenSource

    cache = TokenCache(quick_path / "tokens", 10**9)
    shutil.copytree(place / "data", quick_path / "data")
    file = check_folder(quick_path / "data", JobSpec())["train"]
    path = Path(file.path)
    source = TokenSource(JobSpec(), load_tokenizer(place / "model"), place / "model", cache)

    def meddle() -> None:
        with path.open("a") as open_file:
            open_file.write('{"prompt": "a", "completion": "b"}\n')

    with pytest.raises(DataRejected, match="changed while it was read"):
        source.rows(file, file.sha256, meddle, EventLog([]))
    assert not any(entry.is_dir() for entry in cache.folder.iterdir())
