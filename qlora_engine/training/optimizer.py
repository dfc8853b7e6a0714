"""mlx_lm's optimizers and learning-rate schedules, by the names of the job file."""

from __future__ import annotations

from collections.abc import Callable

import mlx.optimizers as optim
from mlx_lm.tuner.utils import build_schedule

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.unforeseen import said_by

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "muon": optim.Muon,
    "sgd": optim.SGD,
    "adafactor": optim.Adafactor,
}


def build_optimizer(spec: JobSpec) -> optim.Optimizer:
    """The optimizer of a job; a schedule counts optimizer steps.

    Raises:
        JobRejected: the optimizer or the schedule does not take the arguments given.
    """
    try:
        rate = build_schedule(spec.lr_schedule.model_dump()) if spec.lr_schedule else spec.learning_rate
    except (TypeError, ValueError) as error:
        raise JobRejected(
            f"lr_schedule cannot be built: {said_by(error)}.",
            where="lr_schedule.arguments",
            remedy="See mlx.optimizers.schedulers for what this schedule takes.",
        ) from None
    options = spec.optimizer_config.get(spec.optimizer, {})
    try:
        return OPTIMIZERS[spec.optimizer](learning_rate=rate, **options)
    except (TypeError, ValueError) as error:
        raise JobRejected(
            f"optimizer_config.{spec.optimizer} cannot be used: {said_by(error)}.",
            where=f"optimizer_config.{spec.optimizer}",
            remedy="See mlx.optimizers for what this optimizer takes.",
        ) from None
