"""When the machine's surroundings keep jobs from training, and when no more: what holds for every course of events."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_daemon.limits import BELOW_TIMES, CHARGED, Alarm, Limits, Surroundings
from qlora_daemon.surroundings import Reading
from qlora_engine.host.heat import Heat
from qlora_engine.host.power import Power
from qlora_engine.host.pressure import Pressure
from qlora_engine.job.hindrance import Kind, Whom
from qlora_engine.job.hours import Hours
from qlora_worker.settings import Settings

NOON = datetime(2026, 11, 23, 12, 0)
CALM = 60.0
LIMITS = Limits(calm=CALM)
WELL = Reading(Power(False, 90), Heat.NOMINAL, Pressure.NORMAL)


def kinds(around: Surroundings, limits: Limits = LIMITS, wall: datetime = NOON) -> set[Kind]:
    return {hindrance.kind for hindrance in around.hindrances(limits, wall)}


def course(*readings: tuple[float, Reading], limits: Limits = LIMITS) -> Surroundings:
    """What is known after these looks, each at a time in seconds."""
    around = Surroundings()
    for now, reading in readings:
        around = around.next(reading, limits, now)
    return around


def short(pressure: Pressure) -> Reading:
    return Reading(pressure=pressure)


def test_a_machine_that_tells_nothing_keeps_no_job() -> None:
    """Most machines with Linux have no battery, and containers no sensors."""
    assert kinds(course((0.0, Reading()))) == set()
    assert kinds(course((0.0, WELL))) == set()


def test_what_is_wrong_counts_at_once_and_each_for_itself() -> None:
    """The look that finds it is the one that stops the job."""
    worst = Reading(Power(True, 5), Heat.CRITICAL, Pressure.CRITICAL, free=0)
    nights = Limits(hours=Hours.of("22:00-07:00"), reserve=10**9)
    found = course((0.0, worst), limits=nights).hindrances(nights, NOON)
    assert {hindrance.kind for hindrance in found} == set(Kind)
    assert found[0].what == "it is outside the training hours, which begin at 22:00"


def test_between_warning_and_critical_training_goes_on() -> None:
    """A small Mac warns all day."""
    assert kinds(course((0.0, short(Pressure.WARNING)))) == set()
    assert kinds(course((0.0, Reading(heat=Heat.HEAVY)))) == set()
    careful = Limits(heat=Heat.HEAVY, pressure=Pressure.WARNING)
    assert kinds(course((0.0, short(Pressure.WARNING)), limits=careful)) == {Kind.PRESSURE}
    careless = Limits(heat=None, pressure=None, low_battery=0)
    worst = Reading(Power(True, 1), Heat.CRITICAL, Pressure.CRITICAL)
    assert kinds(course((0.0, worst), limits=careless)) == {Kind.BATTERY}  # which concerns only jobs that ask for it


def test_jobs_go_on_after_it_was_well_for_a_minute_and_not_before() -> None:
    """Training stops, memory is free, training starts, memory is short: that would be flapping."""
    looks = [(0.0, short(Pressure.CRITICAL)), (10.0, short(Pressure.NORMAL)), (69.0, short(Pressure.NORMAL))]
    assert kinds(course(*looks)) == {Kind.PRESSURE}
    assert kinds(course(*looks, (70.0, short(Pressure.NORMAL)))) == set()
    assert kinds(course(*looks, (69.5, short(Pressure.WARNING)), (75.0, short(Pressure.NORMAL)))) == {Kind.PRESSURE}


def test_a_machine_that_is_only_better_keeps_jobs_longer_but_not_for_ever() -> None:
    """Otherwise a Mac that warns all day would never train again."""
    looks = [(0.0, short(Pressure.CRITICAL)), (1.0, short(Pressure.WARNING))]
    assert kinds(course(*looks, (BELOW_TIMES * CALM, short(Pressure.WARNING)))) == {Kind.PRESSURE}
    assert kinds(course(*looks, (1.0 + BELOW_TIMES * CALM, short(Pressure.WARNING)))) == set()


def test_a_job_that_itself_is_too_much_starts_less_and_less_often() -> None:
    """It would stop and start every minute for ever, and the machine would be unusable."""
    around, now, waits = Surroundings(), 0.0, []
    for _ in range(10):
        around = around.next(short(Pressure.CRITICAL), LIMITS, now)
        stopped = now
        while around.pressure.on:
            now += 1.0
            around = around.next(short(Pressure.NORMAL), LIMITS, now)
        waits.append(now - stopped)
        now += 30.0  # it trains a while
    assert [round(wait / CALM) for wait in waits] == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]
    later = around.next(short(Pressure.CRITICAL), LIMITS, now + 3600.0)
    assert later.pressure.returns == 0  # a good hour is forgiven


looks = st.lists(
    st.tuples(st.floats(0.1, 200.0), st.sampled_from(list(Pressure)), st.sampled_from([None, *Heat])), max_size=40
)


@given(looks)
def test_no_alarm_ends_before_its_time_and_none_begins_below_its_limit(
    course_of_events: list[tuple[float, Pressure, Heat | None]],
) -> None:
    """Whatever the machine does."""
    around, now, last_over = Surroundings(), 0.0, {"pressure": -1e9, "heat": -1e9}
    for passed, pressure, heat in course_of_events:
        now += passed
        before, around = around, around.next(Reading(None, heat, pressure), LIMITS, now)
        over = {"pressure": pressure is Pressure.CRITICAL, "heat": heat is Heat.CRITICAL}
        for name, is_over in over.items():
            alarm, was = getattr(around, name), getattr(before, name)
            if is_over:
                last_over[name] = now
                assert alarm.on
            elif alarm.on:
                assert was.on
            elif was.on:
                assert now - last_over[name] >= CALM * 2**was.returns


def test_an_alarm_ends_if_nothing_is_over_the_limit_any_more() -> None:
    """A job that waits for ever would be worse than one that trains in the heat."""
    alarm = Alarm().next(over=True, well=False, now=0.0, calm=CALM)
    for now in range(0, 100_000, 15):
        alarm = alarm.next(over=False, well=now % 2 == 0, now=float(now), calm=CALM)
    assert not alarm.on


@given(st.lists(st.tuples(st.booleans(), st.none() | st.integers(0, 100)), min_size=1, max_size=30))
def test_a_low_battery_stops_all_jobs_until_it_is_charged_or_plugged_in(
    powers: list[tuple[bool, int | None]],
) -> None:
    """At the edge of the limit a job must not stop and start with every percent."""
    around = Surroundings()
    for number, (on_battery, percent) in enumerate(powers):
        was = around.low
        around = around.next(Reading(Power(on_battery, percent)), LIMITS, float(number))
        found = {hindrance.kind: hindrance for hindrance in around.hindrances(LIMITS, NOON)}
        assert (Kind.BATTERY in found) == on_battery
        low = on_battery and percent is not None and percent < LIMITS.low_battery + (CHARGED if was else 1)
        assert (Kind.LOW_BATTERY in found) == low
        if low:
            assert found[Kind.LOW_BATTERY].whom is Whom.ALL


def test_jobs_that_say_nothing_follow_the_setting() -> None:
    """A laptop's owner says it once and not in every job."""
    (by_default,) = course((0.0, Reading(Power(True, 90)))).hindrances(LIMITS, NOON)
    (by_setting,) = course((0.0, Reading(Power(True, 90)))).hindrances(Limits(ac_alone=True), NOON)
    assert (by_default.whom, by_setting.whom) == (Whom.ON_AC, Whom.NOT_ANY)


def test_the_settings_are_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person sets is what happens; the defaults are those of the page."""
    assert Limits.of(Settings.read()) == Limits()
    for name, value in {
        "POWER": "ac", "LOW_BATTERY": "35", "HEAT": "off", "PRESSURE": "warning", "CALM_SECONDS": "5",
        "TRAINING_HOURS": "22:00-07:00", "DISK_RESERVE_GB": "0.5",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"QLORAD_{name}", value)
    hours = Hours.of("22:00-07:00")
    assert Limits.of(Settings.read()) == Limits(True, 35, None, Pressure.WARNING, 5.0, hours, 500_000_000)
