"""Write rows that fill max_seq_length: `python -P -m qlora_engine.training.full_rows SPEC_JSON FOLDER ROWS`.

Joins a job's documents end to end, as one packs them by hand for a trainer that only pads. Any trainer that cuts rows
at max_seq_length then sees full rows and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer

from qlora_engine.job.errors import DataRejected
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.training.data import read_documents


def write_full_rows(job: ResolvedJob, tokenizer: TokenizerWrapper, folder: Path, rows: int) -> None:
    """Write `train.jsonl` with that many rows of text, each at least max_seq_length tokens long.

    The data is gone through as often as it takes. A row begins with a whole document.

    Raises:
        DataRejected: the rows of the job hold no text.
    """
    texts = _endless_texts(job, tokenizer)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(rows):
            text, tokens = "", 0
            while tokens < job.spec.max_seq_length:
                text += next(texts)
                tokens = len(tokenizer.encode(text))
            file.write(f"{json.dumps({job.spec.text_feature: text})}\n")


def _endless_texts(job: ResolvedJob, tokenizer: TokenizerWrapper) -> Iterator[str]:
    file = job.data["train"]
    documents = read_documents(Path(file.path), file.format, job.spec, tokenizer)
    texts = [text for document in documents if (text := tokenizer.decode(document.tokens.tolist()))]
    if not texts:
        raise DataRejected("No row holds any text.", where=file.path, remedy="Write rows with text in them.")
    return itertools.cycle(texts)


def main() -> int:
    """Write the rows."""
    parser = argparse.ArgumentParser(prog="qlora_engine.training.full_rows", description=__doc__)
    parser.add_argument("spec", type=Path, help="a resolved job")
    parser.add_argument("folder", type=Path, help="an existing folder for train.jsonl")
    parser.add_argument("rows", type=int, help="how many")
    arguments = parser.parse_args()
    job = ResolvedJob.load(arguments.spec)
    tokenizer = load_tokenizer(Path(job.model_path or job.spec.model))
    write_full_rows(job, tokenizer, arguments.folder, arguments.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
