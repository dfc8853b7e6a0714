"""Where the tokens of a data file come from: the cache, or the text, which then goes into the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from qlora_engine.job.datafiles import DataFile, parse_row
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.events import EventLog
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.data import beating
from qlora_engine.training.encode import Encoded, Row, encode_rows
from qlora_engine.training.spool import Spool
from qlora_engine.training.token_cache import TokenCache
from qlora_engine.training.token_key import TokenKey, tokenizer_files
from qlora_engine.training.token_rows import RowWriter, TokenRows, in_memory


@dataclass
class TokenSource:
    """The tokens of a job's files with one tokenizer.

    Attributes:
        model: folder that the tokenizer was loaded from.
        cache: None to keep nothing.
        tokenized: files that were not in the cache.
    """

    spec: JobSpec
    tokenizer: TokenizerWrapper
    model: Path
    cache: TokenCache | None
    tokenized: int = field(default=0, init=False)

    def rows(self, file: DataFile, sha256: str, beat: Callable[[], None], log: EventLog) -> TokenRows:
        """The whole rows of a file.

        Args:
            sha256: of the file as it is now.
            beat: called now and then while rows are tokenized.

        Raises:
            DataRejected: a row cannot be tokenized, or the file changes while it is read.
        """
        found = self.kept(file, sha256)
        if found is not None:
            return found
        self.tokenized += 1
        rows = self._encoded(file, sha256, beat)
        if self.cache is None:
            return in_memory(RowWriter(Spool(None)).filled(rows))
        made = self.cache.keep(self._key(file, sha256), rows)
        if (failure := made.spool.failure) is not None:
            log.emit("tokens.not_kept", path=str(self.cache.folder), what=failure.strerror or str(failure))
        return made

    def kept(self, file: DataFile, sha256: str) -> TokenRows | None:
        """The rows of a file if the cache has them."""
        return self.cache.find(self._key(file, sha256)) if self.cache is not None else None

    def _key(self, file: DataFile, sha256: str) -> TokenKey:
        return TokenKey.of(file, sha256, self.spec, self._tokenizer_files)

    @cached_property
    def _tokenizer_files(self) -> dict[str, str]:
        return tokenizer_files(self.model)

    def _encoded(self, file: DataFile, sha256: str, beat: Callable[[], None]) -> Iterator[Encoded]:
        rows = beating(_read(Path(file.path), sha256), beat)
        return encode_rows(rows, file.path, file.format, self.spec, self.tokenizer)


def _read(path: Path, sha256: str) -> Iterator[Row]:
    """Every row, and at the end the certainty that they are those of this hash."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            found.update(raw)
            if raw.strip():
                yield number, parse_row(raw, path, number)
    if found.hexdigest() != sha256:
        raise DataRejected(
            f"{path.name} changed while it was read.", where=str(path), remedy="Leave it alone and start again."
        )
