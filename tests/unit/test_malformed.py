"""Any file at all is accepted or turned away with a reason, within a second and 100 MB."""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from qlora_daemon.examining import Ended, ExaminingProcess
from qlora_engine.job.errors import JobRejected
from qlora_engine.job.folder import slug
from qlora_engine.job.preflight.duration import steps_of
from qlora_engine.job.resolved import AnyResolved, ResolvedJob
from qlora_engine.job.text import plain, plain_lines
from qlora_engine.job.verdict import ExamineRequest, as_line
from qlora_engine.training.documents import Documents
from qlora_engine.training.memory import Device, limits_of
from qlora_engine.training.optimizer import build_optimizer
from support.malformed import LITERALS, PLACES, File, job_files, one_value
from support.service import ROOT
from support.token_rows import memory

BIDIRECTIONAL = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
ROWS = memory(10)
FILES = int(os.environ.get("QLORA_TEST_FILES", "400"))  # `make fuzz` asks for 5,000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bounds memory as only Linux does")


class Examiner:
    """The examiner of `support.bounded_examiner`, started again when a file has ended it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: ExaminingProcess | None = None
        self.accepted = self.rejected = 0

    def examine(self, file: File) -> None:
        """Fail unless the file is accepted, or rejected with a reason."""
        path = self._folder / file.name
        path.write_bytes(file.content)
        request = ExamineRequest(
            job_file=str(path), home=str(self._folder / "home"), base=str(self._folder), shown_as=file.name
        )
        try:
            process = self._started()
            process.send(as_line(request).encode())
            verdict = process.receive(30.0)
        except (Ended, TimeoutError) as end:
            self.close()
            how = f"{end.how}\n{end.complaint}" if isinstance(end, Ended) else "no answer"
            pytest.fail(f"{file!r} ended the examiner: {how}")
        finally:
            path.unlink()
        if verdict.accepts:
            self.accepted += 1
            for job in [verdict.job] if verdict.job else [member.job for member in verdict.sweep.members]:
                _compute_with(job, file)
            return
        self.rejected += 1
        assert verdict.what, file
        assert verdict.remedy, file
        shown = str(JobRejected(verdict.what, where=verdict.where, remedy=verdict.remedy))
        assert len(plain_lines(shown)) < 4000, (file, shown)

    def _started(self) -> ExaminingProcess:
        if self._process is None:
            self._process = ExaminingProcess("support.bounded_examiner")
            self._process.__enter__()
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.__exit__(None, None, None)
            self._process = None


@pytest.fixture(scope="module")
def examiner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Examiner]:
    folder = tmp_path_factory.mktemp("fuzz")
    for name, content in (("m/config.json", "{}"), ("m/model.safetensors", ""), ("d/train.jsonl", '{"text": "a"}\n')):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / part) for part in (".", "tests")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        found = Examiner(folder)
        yield found
        found.close()


def _compute_with(job: AnyResolved, file: File) -> None:
    """Fail unless the job can be stored, and what a survey and a run make of its numbers at once can be made."""
    try:
        json.dumps(job.model_dump(mode="json"), ensure_ascii=False, allow_nan=False).encode()
        if isinstance(job, ResolvedJob):
            steps_of(job.spec, 10**6)
            limits_of(job.spec.memory, Device(10**9, None))
            Documents(ROWS, job.spec.max_seq_length)
            build_optimizer(job.spec).learning_rate.item()
    except JobRejected:
        return  # by the optimizer, with a reason
    except Exception as error:  # noqa: BLE001  # whatever it is
        pytest.fail(f"{file!r} is accepted, and then: {error!r}")


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_every_value_at_every_place_is_accepted_or_turned_away_with_a_reason(
    examiner: Examiner, place: tuple[str, ...]
) -> None:
    """What is drawn seldom meets the one key that a value crashes; what is accepted can be computed with and stored."""
    for kind, literals in LITERALS.items():
        for literal in literals:
            examiner.examine(one_value(kind, place, literal))


@settings(
    max_examples=FILES, deadline=None, derandomize=FILES == 400, database=None, print_blob=False,
    phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(file=job_files)
def test_every_file_is_accepted_or_turned_away_with_a_reason(examiner: Examiner, file: File) -> None:
    """One file that ends, stops or fills the examiner is one that a stranger can send every minute."""
    examiner.examine(file)


def test_the_fuzzer_reaches_both_verdicts(examiner: Examiner) -> None:
    """Files that are all turned away for one reason would prove nothing."""
    assert examiner.accepted > FILES / 200
    assert examiner.rejected > FILES / 4


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(file=job_files)
def test_nothing_that_a_terminal_obeys_gets_through(file: File) -> None:
    """Whoever lists jobs shall not run what a job file says to their terminal."""
    text = file.content.decode("utf-8", errors="surrogateescape")
    assert not [char for char in plain(text) if unicodedata.category(char) in ("Cc", "Cs") or char in BIDIRECTIONAL]
    assert re.fullmatch("[a-z0-9-]+", slug(text))
