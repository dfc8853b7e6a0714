"""Settings of the daemon and the worker: `QLORAD_*` variables, read once at start and passed down."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Mapping
from typing import Literal, Self, get_args
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from qlora_engine.job.errors import BadSetting
from qlora_engine.job.hours import Hours
from qlora_engine.settings import EngineSettings

PREFIX = "QLORAD_"
ENCODE = "Characters such as @ / # ? : of a password are percent-encoded in it: %40 %2F %23 %3F %3A."
NOTICES = ("done", "failed", "held", "stalled")


class Settings(EngineSettings):
    """What the service can be told beside what the engine knows."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    redis_url: SecretStr | None = Field(
        default=None, description="a Redis or Valkey to use instead of the embedded one"
    )
    redis_insecure: bool = Field(
        default=False, description="allow redis:// to another machine: the network itself must be private then"
    )
    settle_seconds: float = Field(
        default=2.0, gt=0, le=600, description="how long a dropped file must be unchanged before it is taken"
    )
    stop_seconds: float = Field(
        default=60.0, gt=0, le=75, description="time to reach a checkpoint when the service stops"
    )
    cancel_seconds: float = Field(
        default=4.0, gt=0, le=60, description="time to reach a checkpoint when a job is cancelled"
    )
    stall_seconds: float = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="least time without progress in training that counts as a stall; other phases get more",
    )
    power: Literal["any", "ac"] = Field(
        default="any", description="what a job that does not say does on battery: train, or wait for the plug"
    )
    low_battery: int = Field(
        default=20, ge=0, le=80, description="percent of charge from which on all jobs wait for the plug; 0 for never"
    )
    heat: Literal["heavy", "critical", "off"] = Field(
        default="critical", description="how hot the machine must be for jobs to wait"
    )
    pressure: Literal["warning", "critical", "off"] = Field(
        default="critical", description="how short of memory the machine must be for jobs to wait"
    )
    calm_seconds: float = Field(
        default=60.0, ge=0, le=86_400, description="how long heat and memory must have been well before jobs go on"
    )
    look_seconds: float = Field(
        default=15.0,
        ge=0.1,
        le=600,
        description="time between two looks at power, heat and memory while jobs wait or run",
    )
    training_hours: str = Field(
        default="", description="when jobs may train, local time: 22:00-07:00, Sat-Sun 00:00-24:00; always when empty"
    )
    disk_reserve_gb: float = Field(
        default=5.0,
        ge=0,
        allow_inf_nan=False,
        description="room that jobs leave on the disk, 10^9 bytes: below it none starts; 0 for none",
    )
    keep_rejected: int = Field(
        default=200, ge=1, le=100_000, description="rejected files and folders that are kept in jobs/rejected"
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="serve Prometheus metrics there, to this machine alone; off when unset",
    )
    notify: SecretStr | None = Field(
        default=None, description="who is told of every job: targets of notify.toml, or addresses of apprise; by spaces"
    )
    notify_on: str = Field(default=" ".join(NOTICES), description="of what messages tell")
    log_bytes: int = Field(default=10_000_000, ge=10_000, description="size at which the service log is rotated")
    log_files: int = Field(default=5, ge=1, le=1000, description="rotated service logs that are kept")

    @field_validator("redis_url")
    @classmethod
    def _empty_means_unset(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value and value.get_secret_value().strip() else None

    @field_validator("notify_on")
    @classmethod
    def _are_notices(cls, value: str) -> str:
        if unknown := [word for word in value.split() if word not in NOTICES]:
            raise ValueError(f"{unknown[0]!r:.40} is none of {', '.join(NOTICES)}")
        return value

    @field_validator("training_hours")
    @classmethod
    def _are_hours(cls, value: str) -> str:
        Hours.of(value)
        return value

    @classmethod
    def read(cls) -> Self:
        """The settings of this process.

        Raises:
            BadSetting: a value cannot be used, or Redis would be reached over a network in the clear.
        """
        settings = super().read()
        if settings.redis_url is not None:
            check_redis_url(settings.redis_url.get_secret_value(), insecure=settings.redis_insecure)
        return settings


KNOWN = frozenset(f"{PREFIX}{name.upper()}" for name in Settings.model_fields)
SECRET = frozenset(  # whose values may hold passwords and tokens
    f"{PREFIX}{name.upper()}"
    for name, field in Settings.model_fields.items()
    if SecretStr in get_args(field.annotation)
)


def is_public(name: str) -> bool:
    """Whether a variable is a setting whose value may be shown; what is none may be a password as well."""
    return name in KNOWN - SECRET


def check_redis_url(url: str, *, insecure: bool = False) -> None:
    """Refuse a Redis that would carry jobs and its password over a network unencrypted.

    The message shows no part of the address: with a password that is not written as it must be in one, any part may
    be of that. `insecure` allows plain TCP all the same.

    Raises:
        BadSetting: it is no address of a Redis, it names the server anew behind its `?`, or plain TCP leads to another
            machine.
    """
    name = f"{PREFIX}REDIS_URL"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        raise BadSetting(
            f"{name} is not an address.", where=name, remedy=f"Write it as rediss://user:password@host:6379/0. {ENCODE}"
        ) from None
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise BadSetting(
            f"{name} does not begin as the address of a Redis does.",
            where=name,
            remedy="Begin it with rediss:// (TLS), redis:// (this machine only) or unix://.",
        )
    options = parse_qs(parts.query, keep_blank_values=True)
    if parts.scheme != "unix" and ("@" in parts.path + parts.fragment or any("@" in option for option in options)):
        raise BadSetting(f"{name} has an @ behind the host.", where=name, remedy=ENCODE)
    if not options.keys().isdisjoint(("host", "port")):
        raise BadSetting(
            f"{name} has `host` or `port` behind its `?`.",
            where=name,
            remedy="Write them before it, as in rediss://user:password@host:6379/0.",
        )
    if parts.scheme == "redis" and not insecure and not _is_loopback(host):
        raise BadSetting(
            f"{name} leads to another machine without encryption.",
            where=name,
            remedy=f"Use rediss:// (TLS), or a server on this machine. On a network that is private by itself, "
            f"such as a VPN: {PREFIX}REDIS_INSECURE=1.{f' {ENCODE}' if '@' in parts.query else ''}",
        )


def _is_loopback(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def unknown_variables(environment: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Variables that look like settings but are none, each with the setting that was probably meant."""
    short = [known.removeprefix(PREFIX) for known in KNOWN]  # what all have in common makes none of them near
    return [
        (
            name,
            next((PREFIX + near for near in difflib.get_close_matches(name[len(PREFIX) :].upper(), short, n=1)), None),
        )
        for name in sorted(environment)
        if name.upper().startswith(PREFIX) and name.upper() not in KNOWN
    ]
