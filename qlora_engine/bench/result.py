"""What a comparison comes to: speeds of single runs, the ratio of each pair, and the median of the ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

USEFUL = (
    "supervised targets a second after warm-up; the engine by the wall clock, "
    "mlx_lm by its own clock, which leaves the making of batches out"
)

Trainer = Literal["engine", "mlx_lm"]
TRAINERS: tuple[Trainer, ...] = ("mlx_lm", "engine")
Case = Literal["padded", "packing off", "packed"]


@dataclass(frozen=True)
class Report:
    """What a trainer did since its report before.

    Attributes:
        at: seconds, of any clock.
        targets: learned since the report before.
        seconds: that this took.
    """

    at: float
    targets: int
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """One run of one trainer.

    Attributes:
        tokens_per_second: useful ones.
        targets, seconds, reports: that the speed was measured over.
        peak_gb: most memory that MLX held, 10^9 bytes.
        process_gb: most memory that the process had resident, 10^9 bytes; on a GPU only its part on the host.
    """

    trainer: Trainer
    tokens_per_second: float
    targets: int
    seconds: float
    reports: int
    peak_gb: float
    process_gb: float


@dataclass(frozen=True)
class Pair:
    """Both trainers, one after the other."""

    engine: Measurement
    mlx_lm: Measurement

    @property
    def ratio(self) -> float:
        """The engine's speed over mlx_lm's."""
        return self.engine.tokens_per_second / self.mlx_lm.tokens_per_second


@dataclass(frozen=True)
class Comparison:
    """All pairs of one case."""

    case: Case
    pairs: Sequence[Pair]

    @property
    def ratios(self) -> list[float]:
        """Of each pair, in the order in which they were measured."""
        return [pair.ratio for pair in self.pairs]

    def of(self, trainer: Trainer) -> list[Measurement]:
        """One trainer's runs."""
        return [pair.engine if trainer == "engine" else pair.mlx_lm for pair in self.pairs]

    def speed(self, trainer: Trainer) -> float:
        """Median of a trainer's useful tokens a second."""
        return statistics.median(run.tokens_per_second for run in self.of(trainer))

    def peak_gb(self, trainer: Trainer) -> float:
        """The highest peak of a trainer's runs."""
        return max(run.peak_gb for run in self.of(trainer))

    def process_gb(self, trainer: Trainer) -> float:
        """The highest of a trainer's processes."""
        return max(run.process_gb for run in self.of(trainer))

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "case": self.case,
            **_spread(self.ratios),
            **{
                trainer: {
                    "tokens_per_second": round(self.speed(trainer), 3),
                    "peak_gb": self.peak_gb(trainer),
                    "process_gb": self.process_gb(trainer),
                }
                for trainer in TRAINERS
            },
            "pairs": [{**asdict(pair), "ratio": round(pair.ratio, 4)} for pair in self.pairs],
        }


@dataclass(frozen=True)
class BenchResult:
    """A whole bench; the first comparison is the one that counts.

    Attributes:
        job: the keys that both trainers ran with.
        machine: backend, device and versions, as the engine found them.
    """

    comparisons: Sequence[Comparison]
    job: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For machines: one object whose `ratio` is the median of the first comparison's pairs."""
        first = self.comparisons[0]
        return {
            **_spread(first.ratios),
            "case": first.case,
            "useful": USEFUL,
            "comparisons": [comparison.as_dict() for comparison in self.comparisons],
            "job": self.job,
            "machine": self.machine,
        }


def steady(reports: Sequence[Report], warm_up: float) -> Sequence[Report]:
    """The reports after warm-up.

    The first report ends loading and the first compilation and is never counted, nor is any that came within
    `warm_up` seconds after it, when further shapes are compiled. Both trainers are cut by this one rule.
    """
    if not reports:
        return []
    end = reports[0].at + warm_up
    return [report for report in reports[1:] if report.at > end]


def enough(reports: Sequence[Report], *, warm_up: float, seconds: float) -> bool:
    """Whether what is left after warm-up is a measurement: at least one report, and this many seconds."""
    counted = steady(reports, warm_up)
    return bool(counted) and sum(report.seconds for report in counted) >= seconds


def speed(reports: Sequence[Report], warm_up: float) -> tuple[int, float]:
    """Targets learned after warm-up, and the seconds that they took."""
    counted = steady(reports, warm_up)
    return sum(report.targets for report in counted), sum(report.seconds for report in counted)


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    median = round(statistics.median(ratios), 4)
    return {"ratio": median, "ratio_min": round(min(ratios), 4), "ratio_max": round(max(ratios), 4)}
