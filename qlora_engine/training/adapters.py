"""The result in mlx_lm's format: `mlx_lm.generate --adapter-path` takes the folder as it is."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from qlora_engine.job import durable
from qlora_engine.job.errors import JobRejected
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.unforeseen import said_by
from qlora_engine.training import tensor_file
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.tree import flat

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"


def save_adapters(folder: Path, masters: tensor_file.Arrays, job: ResolvedJob) -> Path:
    """Write adapters and their config; each file is replaced at once, never in part. Touches nothing of MLX.

    Args:
        masters: float32, the trained parameters by path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = job.spec.model_dump(mode="json", exclude_none=True)
    config |= {"model": job.model_path or job.spec.model, "train": True}
    # mlx_lm knows no rank_stabilized: what it reads is the scale in effect.
    config["lora_parameters"] |= {"scale": job.spec.lora_parameters.effective_scale, "rank_stabilized": False}
    if job.spec.fine_tune_type == "full":
        config["lora_parameters"] = None
    durable.write_json(folder / CONFIG, config)
    temporary = folder / f"{durable.TEMPORARY}{WEIGHTS}"
    tensor_file.write(temporary, masters, metadata={"format": "mlx"})
    temporary.rename(folder / WEIGHTS)
    durable.sync_folder(folder)
    return folder


def start_from(path: Path, step: TrainingStep) -> None:
    """Begin with the adapters of an earlier run (`resume_adapter_file`).

    Raises:
        JobRejected: the file holds arrays that this job does not train, or of other shapes.
    """
    try:
        loaded = mx.load(str(path), format="safetensors")
    except (RuntimeError, ValueError, OSError) as error:
        raise _does_not_fit(path, f"it cannot be read as a safetensors file ({said_by(error)})") from None
    current = flat(step.masters)
    if not isinstance(loaded, dict) or not loaded:
        raise _does_not_fit(path, "it holds no arrays")
    for name, array in loaded.items():
        if name not in current:
            raise _does_not_fit(path, f"it holds {name}, which this job does not train")
        if array.shape != current[name].shape:
            raise _does_not_fit(path, f"{name} has shape {array.shape}, here {current[name].shape}")
    arrays = step.state() | {f"masters.{name}": array.astype(mx.float32) for name, array in loaded.items()}
    step.restore(arrays)


def _does_not_fit(path: Path, why: str) -> JobRejected:
    return JobRejected(
        f"The adapters in {path.name} do not fit this job: {why}.",
        where=f"resume_adapter_file: {path}",
        remedy="Use the model, num_layers and lora_parameters that they were trained with.",
    )
