"""Fusing, as one story: load the base, put the adapters in, make one matrix of each pair, leave the result whole.

There is no checkpoint: it takes minutes, and an attempt that is stopped is made again from the start. What it makes
lies in a folder of its own until all of it is on the disk, and appears by one rename.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map, tree_unflatten
from mlx_lm.utils import dequantize_model, save

from qlora_engine.job import durable
from qlora_engine.job.errors import OutOfMemory, SystemRefused
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import Home, RunFolder
from qlora_engine.job.pulse import Pulse
from qlora_engine.job.resolved import ResolvedFuse, ResolvedJob
from qlora_engine.job.spec import Memory
from qlora_engine.training import export_gguf, memory
from qlora_engine.training.best import save_best
from qlora_engine.training.export_vocabulary import Metadata
from qlora_engine.training.fused_model import add_to_models, write_provenance
from qlora_engine.training.model import Base, activation_type, count_parameters, load_base, put_adapters
from qlora_engine.training.phases import phase
from qlora_engine.training.runtime import Runtime
from qlora_engine.training.tree import flat

MODELFILE = "Modelfile"
NOT_WRITTEN = ("[write]", "[save_gguf]", "[save_safetensors]", "(os error ")


def fuse(
    job: ResolvedFuse, home: Home, run: RunFolder, *, log: EventLog, pulse: Pulse, memory_share: float = 1.0
) -> None:
    """Fuse what another job has learned into its base.

    Args:
        job: as admitted.
        home: whose models a result may be added to.
        run: of this job; its `model/` or `gguf/` is the result.
        log: receives the events.
        pulse: tells whoever watches that it moves.
        memory_share: of the device's memory that may be used at most.

    Raises:
        QloradError: it cannot be fused; with the remedy.
    """
    try:
        _Fusing(job, home, run, log, pulse).fuse(memory_share)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise OutOfMemory(
            "Fusing ran out of memory.",
            where=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="Close other programs, or fuse without `dequantize`.",
        ) from None


@dataclass(frozen=True)
class _Fusing:
    job: ResolvedFuse
    home: Home
    run: RunFolder
    log: EventLog
    pulse: Pulse
    started: float = field(default_factory=time.perf_counter)

    def fuse(self, memory_share: float) -> None:
        """From the adapters to the result; one that an earlier attempt has left whole is taken as it is."""
        found = Runtime.found()
        self.log.emit(
            "fuse.started",
            pid=os.getpid(),
            source=self.job.source,
            backend=found.backend,
            device=found.device,
            versions=found.versions,
        )
        memory.set_limits(Memory(), self.log, memory_share)
        result = self.run.gguf if self.job.spec.export else self.run.model
        if not result.is_dir():
            self._make(result)
        added = self._add(result)
        self.log.emit(
            "fuse.done",
            source=self.job.source,
            model=None if self.job.spec.export else str(result),
            gguf=str(next(result.glob("*.gguf"))) if self.job.spec.export else None,
            added=added,
            bytes=sum(file.stat().st_size for file in result.iterdir()),
            seconds=round(time.perf_counter() - self.started, 1),
        )

    def _make(self, result: Path) -> None:
        work = self.run.making
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        source = self.home.run(self.job.source)
        trained = ResolvedJob.needed(source.spec)
        with phase("load", self.log, self.pulse):
            base = load_base(trained, dequantize=False)
            types = {name: array.dtype for name, array in flat(base.model.parameters()).items()}
            weights = self._put(base, source, trained)
            if trained.spec.fine_tune_type == "full":
                self._cast_back(base, types)
        self._check_room(base)
        about = self._gguf_metadata(base) if self.job.spec.export else None
        with phase("fuse", self.log, self.pulse):
            layers = self._fuse_layers(base)
        self.log.emit(
            "model.fused",
            weights=weights,
            layers=layers,
            bits=None if self.job.spec.in_16_bits else base.bits,
            memory_gb=round(mx.get_active_memory() / memory.GIGA, 3),
        )
        with phase("write", self.log, self.pulse):
            made = work / result.name
            made.mkdir()
            with _writing(made):
                if about is None:
                    self._write_model(base, made)
                else:
                    self._write_gguf(base, about, made)
            durable.sync_contents(made, lambda: self.pulse.beat(0))
            durable.move(made, result)
        shutil.rmtree(work, ignore_errors=True)

    def _put(self, base: Base, source: RunFolder, trained: ResolvedJob) -> str:
        """Put the adapters into the base; what they are called."""
        if self.job.spec.weights == "adapters":
            put_adapters(base, source.adapters)
            return source.adapters.name
        with tempfile.TemporaryDirectory(prefix="qlora-fuse-") as folder:
            name = save_best(
                source, trained, Path(folder), otherwise="Leave `weights` away: then the job's adapters are fused."
            )
            put_adapters(base, Path(folder))
            mx.eval(base.model.parameters())  # they are read from a file that goes
        return name

    def _cast_back(self, base: Base, types: Mapping[str, mx.Dtype]) -> None:
        """Give the weights that were trained themselves, in float32, the types that the base has them in."""
        for name, array in flat(base.model.parameters()).items():
            if array.dtype != types[name]:
                narrow = array.astype(types[name])
                mx.eval(narrow)
                base.model.update(tree_unflatten([(name, narrow)]))
                self.pulse.beat(0)

    def _fuse_layers(self, base: Base) -> int:
        """Make one layer of each layer and its adapters, one after another, so that the peak is one matrix more."""
        model, wide = base.model, self._width(base)
        pairs = [(name, module) for name, module in model.named_modules() if hasattr(module, "fuse")]
        count = len(pairs)
        while pairs:
            name, module = pairs.pop()  # nothing else may hold it, or its memory stays
            fused = _fused(module, wide)
            mx.eval(fused.parameters())
            model.update_modules(tree_unflatten([(name, fused)]))
            self.pulse.beat(0)
        if wide:
            dequantize_model(model)
            for _, module in model.named_modules():
                arrays = {key: array for key, array in module.items() if isinstance(array, mx.array)}
                matrices = {key for key, array in arrays.items() if array.ndim > 1 and array.dtype == mx.float32}
                module.update({key: array.astype(wide) for key, array in arrays.items() if key in matrices})
                arrays.clear()
                mx.eval([array for array in module.values() if isinstance(array, mx.array)])
                self.pulse.beat(0)
            for key in ("quantization", "quantization_config"):
                base.config.pop(key, None)
        return count

    def _width(self, base: Base) -> mx.Dtype | None:
        """What float32 matrices become where the result is 16 bits wide; None where it keeps its types."""
        if not self.job.spec.in_16_bits:
            return None
        if self.job.spec.export:
            return mx.float16  # as in the file; a number too large for it is refused there
        kind = activation_type(base.model)
        return mx.bfloat16 if kind == mx.float32 else kind

    def _write_model(self, base: Base, made: Path) -> None:
        save(made, base.path, base.model, base.tokenizer, base.config, donate_model=True)
        (made / "README.md").unlink(missing_ok=True)  # of a model that is to be uploaded
        write_provenance(made, self.job, self.run.id, base.path)

    def _write_gguf(self, base: Base, about: Metadata, made: Path) -> None:
        weights = flat(base.model.parameters())
        base.model.update(tree_map(lambda _: mx.array([]), base.model.parameters()))
        file = made / f"{self._name()}.gguf"
        export_gguf.write(weights, base.config, about, file, beat=lambda: self.pulse.beat(0))
        durable.write_text(made / MODELFILE, f"FROM ./{file.name}\n")

    def _gguf_metadata(self, base: Base) -> Metadata:
        return export_gguf.metadata(base.config, base.tokenizer, self._name(), str(base.path))

    def _name(self) -> str:
        """What the file is called: as the job that trained, which is what a person looks for."""
        return self.job.source.split("-", 2)[2]

    def _check_room(self, base: Base) -> None:
        parameters = base.model.parameters()
        wide = 2 * count_parameters(base.model)[0]
        need = wide if self.job.spec.in_16_bits else sum(array.nbytes for array in flat(parameters).values())
        free = shutil.disk_usage(self.run.path).free
        if free < need:
            raise SystemRefused(
                f"The result takes {need / memory.GIGA:.1f} GB, and the disk has {free / memory.GIGA:.1f} GB free.",
                where=str(self.run.path),
                remedy="Make room: `qlora clean`.",
            )

    def _add(self, result: Path) -> str | None:
        name = self.job.spec.add_as
        return str(add_to_models(result, self.home, name, self.run.id)) if name else None


@contextmanager
def _writing(made: Path) -> Iterator[None]:
    """A disk that is full as an error of the system, after which it is tried again.

    MLX and the tokenizers' library raise what they raise for any other trouble, and say it in words alone.
    """
    try:
        yield
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        if not any(words in text for words in NOT_WRITTEN):
            raise
        raise SystemRefused(
            f"The result cannot be written: {text}", where=str(made), remedy="Make room on the disk: `qlora clean`."
        ) from None


def _fused(module: nn.Module, wide: mx.Dtype | None) -> nn.Module:
    """One layer of a layer and its adapters, of the base layer's type, which DoRA's float32 magnitudes would widen.

    Args:
        wide: the result is not quantized, and of this type where the base layer's is float32.
    """
    base = module.linear if "linear" in module else module.embedding
    quantized = "scales" in base
    kind = (base.scales if quantized else base.weight).dtype
    if not mx.issubdtype(kind, mx.floating):
        kind = mx.bfloat16  # what MLX makes of a weight whose scales are bytes, as in mxfp4
    if wide and kind == mx.float32:
        kind = wide
    fused: nn.Module = module.fuse(dequantize=True)
    fused.weight = fused.weight.astype(kind)
    if quantized and not wide:
        fused = fused.to_quantized(group_size=base.group_size, bits=base.bits, mode=base.mode)
    return fused
