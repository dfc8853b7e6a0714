"""Answers before and after training: the right questions, and no trace left in training."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import stream_generate
from mlx_lm.tuner.utils import linear_to_lora_layers

from qlora_engine.job.datafiles import DataFormat, check_folder
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_engine.training import samples
from qlora_engine.training.dropout import DropoutKey, key_dropout
from qlora_engine.training.model import Base, load_folder
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.samples import answer
from qlora_engine.training.stop import StopRequest
from support import tiny

TEMPLATE_WITH_TOOLS = "{% if tools %}TOOLS {{ tools[0]['name'] }}\n{% endif %}" + tiny.CHAT_TEMPLATE


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("samples") / "model")


@pytest.fixture
def base(model_folder: Path) -> Base:
    return load_folder(model_folder, "tiny", quantize=False, dequantize=True)


def job_on(folder: Path, rows: list[dict[str, Any]], *, split: str = "valid", **keys: Any) -> ResolvedJob:
    """A resolved job whose `split` holds these rows; its training file holds another one when it is not that."""
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = JobSpec(**keys)
    return ResolvedJob(spec=spec, data=check_folder(folder, spec))


def prompts_of(job: ResolvedJob, base: Base) -> list[samples.Prompt]:
    return samples.prompts_of(job, base.tokenizer, job.data["train"].format)


def question(text: str, base: Base) -> samples.Prompt:
    return samples.asked(text, base.tokenizer, DataFormat.CHAT)


def decoded(base: Base, tokens: list[int]) -> str:
    return str(base.tokenizer.decode(tokens))


def never() -> StopRequest:
    return StopRequest()


def collecting() -> tuple[list[Event], EventLog]:
    events: list[Event] = []
    return events, EventLog([events.append])


def test_the_first_rows_are_asked_without_their_answer(base: Base, tmp_path: Path) -> None:
    """A sample whose prompt holds the answer would show nothing."""
    rows = [{"prompt": f"{n}?", "completion": f"{n} is odd"} for n in (1, 3, 5)]
    prompts = prompts_of(job_on(tmp_path / "data", rows, samples=2), base)
    assert [(prompt.text, prompt.expected) for prompt in prompts] == [("1?", "1 is odd"), ("3?", "3 is odd")]
    assert decoded(base, prompts[0].tokens) == "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n"


def test_without_validation_data_training_rows_are_asked(base: Base, tmp_path: Path) -> None:
    """The report promises answers for every job."""
    rows = [{"prompt": "1?", "completion": "odd"}]
    assert [p.text for p in prompts_of(job_on(tmp_path / "d", rows, split="train"), base)] == ["1?"]


def test_a_chat_is_asked_up_to_its_last_answer_with_its_tools(base: Base, tmp_path: Path) -> None:
    """The model must see what it saw in training: all turns before, and the tools."""
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    job = job_on(tmp_path / "d", [{"messages": turns, "tools": [{"name": "weather"}]}])
    base.tokenizer.chat_template = TEMPLATE_WITH_TOOLS
    (prompt,) = prompts_of(job, base)
    assert prompt.text == "user: a\nassistant: b\nuser: c"
    assert prompt.expected == "d"
    assert decoded(base, prompt.tokens).startswith("TOOLS weather\n<|im_start|>user\na")
    assert decoded(base, prompt.tokens).endswith("c<|im_end|>\n<|im_start|>assistant\n")


def test_text_goes_on_from_its_first_third(base: Base, tmp_path: Path) -> None:
    """Plain text has no question; its beginning stands for one."""
    (prompt,) = prompts_of(job_on(tmp_path / "d", [{"text": "one two three"}]), base)
    assert (prompt.text, prompt.expected) == ("one ", "two three")
    assert decoded(base, prompt.tokens) == "one "


def test_prompts_of_the_job_file_are_asked_as_its_rows_ask(base: Base, tmp_path: Path) -> None:
    """A model of plain text never saw the template in training, and to that would show nothing of what it learned."""
    row = {"prompt": "a", "completion": "b"}
    (prompt,) = prompts_of(job_on(tmp_path / "questions", [row], samples=["Why?"]), base)
    assert decoded(base, prompt.tokens) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.expected is None
    (prompt,) = prompts_of(job_on(tmp_path / "text", [{"text": "x"}], samples=["Why"]), base)
    assert (decoded(base, prompt.tokens), prompt.text, prompt.expected) == ("Why", "Why", None)


def test_a_question_that_the_template_refuses_is_an_error_with_a_remedy(base: Base, tmp_path: Path) -> None:
    """What a person wrote may not be passed over in silence."""
    base.tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(DataRejected, match="does not take a question"):
        prompts_of(job_on(tmp_path / "d", [{"prompt": "a", "completion": "b"}], samples=["Why?"]), base)


def test_rows_that_do_not_fit_are_passed_over(base: Base, tmp_path: Path) -> None:
    """A prompt over max_seq_length would need memory that training does not."""
    rows = [{"prompt": "long " * 50, "completion": "x"}, {"prompt": "short", "completion": "x"}]
    prompts = prompts_of(job_on(tmp_path / "d", rows, max_seq_length=64), base)
    assert [prompt.text for prompt in prompts] == ["short"]


def test_an_answer_is_that_of_mlx_lm(base: Base) -> None:
    """The report shows what `mlx_lm generate` will say with the adapters."""
    prompt = question("12?", base)
    events, log = collecting()
    (answered,) = answer(base.model, base.tokenizer, [prompt], stop=never(), when="before", log=log) or []
    theirs = "".join(piece.text for piece in stream_generate(base.model, base.tokenizer, prompt.tokens, max_tokens=64))
    assert answered.text == theirs.strip()
    assert [(e["event"], e["when"], e["prompt"], e["answer"]) for e in events] == [
        ("sample.answered", "before", "12?", answered.text)
    ]


@pytest.mark.parametrize("recomputed", [False, True], ids=["plain", "recomputed"])
def test_asking_leaves_no_trace_in_training(base: Base, recomputed: bool) -> None:
    """A resumed run, which does not ask again, must stay bit-exact; dropout and recomputed layers must not disturb."""
    model, source = base.model, DropoutKey()
    mx.random.seed(3)
    linear_to_lora_layers(model, -1, {"rank": 4, "scale": 8.0, "dropout": 0.5})
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.3 * mx.random.normal(module.lora_b.shape)
    prompts = [question("12?", base), question("7?", base)]
    _, log = collecting()
    model.eval()
    plain = answer(model, base.tokenizer, prompts, stop=never(), when="before", log=log)
    key_dropout(model, source)
    if recomputed:
        checkpoint_layers(model.layers)
    model.train()
    before, loss = _random_state(), _loss(model)
    asked_again = answer(model, base.tokenizer, prompts, stop=never(), when="after", log=log)
    assert asked_again == plain
    assert model.training
    assert _random_state() == before
    assert _loss(model) == loss


def _random_state() -> list[list[int]]:
    return [array.tolist() for array in mx.random.state]


def _loss(model: Any) -> float:
    return float(mx.logsumexp(model(mx.array([[5, 6, 7, 8]]))).item())


class StopAfter:
    """A log that asks to stop at its first event."""

    def __init__(self) -> None:
        self.stop, self.events = StopRequest(), 0

    def __call__(self, _event: Event) -> None:
        self.events += 1
        self.stop.request("a test")


def test_a_stop_is_seen_between_answers(base: Base) -> None:
    """SIGTERM promises a checkpoint within a micro-batch, also while the model answers."""
    sink = StopAfter()
    prompts = [question(f"{n}?", base) for n in range(5)]
    given = answer(base.model, base.tokenizer, prompts, stop=sink.stop, when="after", log=EventLog([sink]))
    assert given is None
    assert sink.events == 1


def test_a_stop_is_seen_within_an_answer(base: Base) -> None:
    """A long answer may not hold up a stop."""
    stop = never()
    threading.Timer(0.3, stop.request, ["a test"]).start()
    events, log = collecting()
    prompts = [question("12?", base)]
    base.tokenizer.eos_token_ids = {10**6}  # nothing ends an answer but its length
    assert answer(base.model, base.tokenizer, prompts, stop=stop, when="before", log=log, max_tokens=10**6) is None
    assert events == []
