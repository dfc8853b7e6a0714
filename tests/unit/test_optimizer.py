"""Optimizers and schedules by the names of the job file, as mlx_lm builds them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import pytest

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.optimizer import OPTIMIZERS, build_optimizer

KINDS = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "muon": optim.Muon,
    "sgd": optim.SGD,
    "adafactor": optim.Adafactor,
}


@pytest.mark.parametrize("name", KINDS)
def test_each_name_is_mlx_s_optimizer_with_the_job_s_rate(name: str) -> None:
    """The same key must train in the same way here as in mlx_lm."""
    made = build_optimizer(JobSpec(optimizer=name, learning_rate=3e-4))
    assert type(made) is KINDS[name]
    assert made.learning_rate.item() == pytest.approx(3e-4)


def test_every_optimizer_of_the_job_file_is_there() -> None:
    """A name that passes the schema and is missing here would fail only when training starts."""
    assert set(JobSpec.model_fields["optimizer"].annotation.__args__) == set(OPTIMIZERS) == set(KINDS)


def test_the_options_of_the_chosen_optimizer_are_used_and_no_other_s() -> None:
    """mlx_lm's example lists options for every optimizer."""
    config = {"sgd": {"momentum": 0.9}, "adamw": {"weight_decay": 0.3, "betas": [0.8, 0.9]}}
    assert build_optimizer(JobSpec(optimizer="sgd", optimizer_config=config)).momentum == 0.9
    adamw = build_optimizer(JobSpec(optimizer="adamw", optimizer_config=config))
    assert (adamw.weight_decay, adamw.betas) == (0.3, [0.8, 0.9])


@pytest.mark.parametrize(
    ("name", "arguments", "values"),
    [
        ("linear_schedule", [1.0, 0.0, 4.0], [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]),
        ("exponential_decay", [1.0, 0.5], [1.0, 0.5, 0.25, 0.125]),
        ("step_decay", [1.0, 0.5, 2.0], [1.0, 1.0, 0.5, 0.5, 0.25]),
        ("cosine_decay", [1.0, 2.0], [1.0, 0.5, 0.0, 0.0]),
    ],
)
def test_schedules_count_optimizer_steps_after_their_warmup(
    name: str, arguments: list[float], values: list[float]
) -> None:
    """As mlx_lm's: a rise to the schedule's first value in `warmup` steps, and then the schedule from its start."""
    schedule: dict[str, Any] = {"name": name, "arguments": arguments}

    def rates(count: int, **more: Any) -> list[float]:
        made = build_optimizer(JobSpec(optimizer="sgd", lr_schedule=schedule | more))
        weights = {"x": mx.zeros(2)}
        made.init(weights)
        found = []
        for _ in range(count):
            weights = made.apply_gradients({"x": mx.ones(2)}, weights)
            found.append(made.learning_rate.item())
        return found

    assert rates(len(values)) == pytest.approx(values)
    warm = rates(len(values) + 3, warmup=2, warmup_init=0.5)
    assert warm[:2] == pytest.approx([0.5, 0.75])
    assert warm[3 : 3 + len(values)] == pytest.approx(values)


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"lr_schedule": {"name": "cosine_decay", "arguments": [1.0]}}, "lr_schedule.arguments"),
        ({"lr_schedule": {"name": "step_decay", "arguments": [1.0, 2.0, 3.0, 4.0]}}, "lr_schedule.arguments"),
        ({"optimizer": "sgd", "optimizer_config": {"sgd": {"momentumm": 0.9}}}, "optimizer_config.sgd"),
        ({"optimizer": "adafactor", "optimizer_config": {"adafactor": {"learning_rate": 1.0}}}, "optimizer_config"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_their_key(keys: dict[str, Any], where: str) -> None:
    """A traceback from MLX would not say which line of the job file to change."""
    with pytest.raises(JobRejected) as caught:
        build_optimizer(JobSpec(**keys))
    assert str(caught.value.where).startswith(where)
    assert "mlx.optimizers" in str(caught.value.remedy)
