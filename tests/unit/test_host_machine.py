"""Power, heat and sleep of the machine, asked of programs that answer as macOS's do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qlora_engine.host import awake, heat, power
from qlora_engine.host.awake import Awake
from qlora_engine.host.heat import Heat
from qlora_engine.host.power import Power
from qlora_engine.job.errors import ProgramFailed
from support import recorded
from support.recorded import Recorded
from support.recorded.pmset import batteries, thermal


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", recorded.on_path(folder))
    return folder


@pytest.fixture
def pmset(bin_folder: Path) -> Recorded:
    return recorded.install(bin_folder, "pmset")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until the test is over."""
    with subprocess.Popen(["sleep", "60"]) as found:
        yield found
        found.kill()


# Power


@pytest.mark.parametrize(
    ("source", "percent", "expected"),
    [
        ("AC Power", 87, Power(False, 87)),
        ("AC Power", None, Power(False, None)),
        ("Battery Power", 9, Power(True, 9)),
        ("UPS Power", 100, Power(True, 100)),
    ],
)
def test_a_mac_says_where_its_power_comes_from(
    pmset: Recorded, source: str, percent: int | None, expected: Power
) -> None:
    """A desktop has no battery; a UPS is one, for it ends as well."""
    pmset.change(source=source, percent=percent)
    assert power.power() == expected
    assert pmset.calls == [["-g", "batt"]]
    pmset.check()


@pytest.mark.parametrize(
    "line",
    [
        " -InternalBattery-0 (id=1)\t41%; AC attached; not charging present: true",
        " -InternalBattery-0 (id=1)\t41%; charging; (no estimate) present: true",
        " -InternalBattery-0\t41%; finishing charge; 0:10 remaining",
        " -InternalBattery-0 (id=1)\t41%; charged; 0:00 remaining present: true\n -Mouse (id=2)\t90%; discharging;",
    ],
)
def test_whatever_the_battery_does_its_charge_is_read(line: str) -> None:
    """Each of these lines is seen on some Mac."""
    assert power.from_pmset(f"Now drawing from 'AC Power'\n{line}\n") == Power(False, 41)


def test_words_that_are_not_pmsets_say_nothing() -> None:
    """A job does not wait for a plug that nobody knows of."""
    assert power.from_pmset("") is None
    assert heat.from_pmset("") is None
    assert power.from_pmset(batteries()) == Power(False, 87)


def test_a_program_that_hangs_is_an_error_and_not_a_wait(pmset: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lookout keeps what it knew and says that it does not know more."""
    monkeypatch.setattr(power, "SECONDS", 0.2)
    pmset.change(hangs=30.0)
    with pytest.raises(ProgramFailed, match="did not end"):
        power.power()


def supply(folder: Path, name: str, **properties: str | int) -> None:
    """A power supply as Linux shows it: a file for each property."""
    (folder / name).mkdir(parents=True)
    for key, value in properties.items():
        (folder / name / key).write_text(f"{value}\n")


def test_linux_is_asked_where_there_is_no_pmset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A laptop with Linux keeps the same promises."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(power, "SUPPLIES", tmp_path / "supplies")
    assert power.power() is None
    supply(power.SUPPLIES, "BAT0", type="Battery", status="Discharging", capacity=55)
    assert power.power() == Power(True, 55)


def test_the_battery_of_a_mouse_is_not_that_of_the_machine(tmp_path: Path) -> None:
    """All jobs of a desktop waited for a plug that it is always in."""
    mouse = {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": 15}
    supply(tmp_path, "hidpp_battery_0", **mouse)
    assert power.from_supplies(tmp_path) is None
    supply(tmp_path, "dock", type="USB", scope="Device", online=1)
    supply(tmp_path, "BAT1", type="Battery", scope="System", status="Discharging", capacity=80)
    assert power.from_supplies(tmp_path) == Power(True, 80)


@pytest.mark.parametrize(
    ("plugs", "status", "on_battery"),
    [
        ([("Mains", 1)], "Not charging", False),
        ([("Mains", 0)], "Discharging", True),
        ([("Mains", 0), ("USB", 1)], "Charging", False),
        ([("Mains", 0), ("USB_PD", 2)], "Discharging", False),
        ([("USB", 0), ("USB", 0)], "Unknown", True),
        ([], "Discharging", True),
        ([], "Full", False),
        ([], "Unknown", False),
    ],
)
def test_a_laptop_is_plugged_in_by_whichever_plug(
    tmp_path: Path, plugs: list[tuple[str, int]], status: str, on_battery: bool
) -> None:
    """Many have no round plug any more; and where no plug is shown, the battery says whether it discharges."""
    for number, (kind, online) in enumerate(plugs):
        supply(tmp_path, f"plug{number}", type=kind, online=online)
    supply(tmp_path, "BAT0", type="Battery", status=status, capacity=90)
    assert power.from_supplies(tmp_path) == Power(on_battery, 90)


@pytest.mark.parametrize(
    ("first", "second", "percent"),
    [
        ({"energy_now": 10, "energy_full": 20, "capacity": 50}, {"energy_now": 60, "energy_full": 60}, 88),
        ({"energy_now": 10, "energy_full": 20, "capacity": 50}, {"capacity": 100}, 75),
        ({"capacity": 50}, {"present": 0, "capacity": 0}, 50),
        ({"capacity": 101}, {"capacity": 101}, 100),
        ({"energy_now": 0, "energy_full": 0, "capacity": "?"}, {"energy_now": 0, "energy_full": 0}, None),
    ],
)
def test_of_several_batteries_all_count(
    tmp_path: Path, first: dict[str, str | int], second: dict[str, str | int], percent: int | None
) -> None:
    """A small one that is empty is not the end while a large one is full."""
    for name, found in (("BAT0", first), ("BAT1", second)):
        supply(tmp_path, name, type="Battery", status="Discharging", **found)
    assert power.from_supplies(tmp_path) == Power(True, percent)


# Heat


@pytest.mark.parametrize(
    ("recorded_by_pmset", "pressure", "expected"),
    [
        ({}, 0, Heat.NOMINAL),
        ({}, 1, Heat.RAISED),
        ({}, 2, Heat.HEAVY),
        ({}, 3, Heat.CRITICAL),
        ({}, 4, Heat.CRITICAL),
        ({"warning": 0, "speed": 100}, 0, Heat.NOMINAL),
        ({"speed": 88}, 0, Heat.RAISED),
        ({"speed": 50}, 0, Heat.HEAVY),
        ({"warning": 5}, 0, Heat.HEAVY),
        ({"warning": 10}, 1, Heat.CRITICAL),
    ],
)
def test_the_worst_word_on_heat_counts(
    bin_folder: Path, pmset: Recorded, recorded_by_pmset: dict[str, int], pressure: int, expected: Heat
) -> None:
    """On Apple silicon only the notification tells, on Intel only pmset."""
    notify = recorded.install(bin_folder, "notifyutil", values={heat.PRESSURE: pressure})
    pmset.change(**recorded_by_pmset)
    assert heat.heat() is expected
    notify.check()
    assert heat.from_pmset(thermal(**recorded_by_pmset)) is not None


def test_a_mac_without_notifyutil_is_believed_what_pmset_says(
    pmset: Recorded, bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no part of every system."""
    (bin_folder / "env").symlink_to("/usr/bin/env")
    monkeypatch.setenv("PATH", str(bin_folder))
    assert heat.heat() is Heat.NOMINAL


@pytest.mark.parametrize(
    ("now", "high", "critical", "expected"),
    [
        (60.0, 80.0, 100.0, Heat.NOMINAL),
        (85.0, 80.0, 100.0, Heat.HEAVY),
        (101.0, 80.0, 100.0, Heat.CRITICAL),
        (90.0, None, 100.0, Heat.NOMINAL),
        (90.0, 0.0, 65261.0, None),
        (90.0, None, None, None),
    ],
)
def test_a_sensor_of_linux_is_believed_where_its_limits_are_plausible(
    now: float, high: float | None, critical: float | None, expected: Heat | None
) -> None:
    """Drivers fill in 0 or 65261 where they know none, and no job may wait for that."""
    assert heat.from_sensor(now, high, critical) is expected


def sensor(folder: Path, name: str, **degrees: float) -> None:
    """A sensor as Linux shows it: a file for its temperature and for each limit that it has."""
    folder.mkdir(parents=True, exist_ok=True)
    for end, value in degrees.items():
        (folder / f"{name}_{end}").write_text(f"{value * 1000:.0f}\n")


def test_a_sensor_that_knows_no_critical_limit_is_never_critical(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An input of a board to which nothing is connected stopped every job."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(heat, "SENSORS", tmp_path / "hwmon")
    monkeypatch.setattr(heat, "ZONES", tmp_path / "thermal")
    assert heat.heat() is None
    sensor(heat.SENSORS / "hwmon0", "temp1", input=45, max=80, crit=100)
    assert heat.heat() is Heat.NOMINAL
    sensor(heat.SENSORS / "hwmon1", "temp4", input=104, max=80)
    assert heat.heat() is Heat.HEAVY
    sensor(heat.SENSORS / "hwmon2", "temp1", max=80, crit=90)  # its device sleeps
    sensor(heat.SENSORS / "hwmon3", "temp1", input=89, crit=90)
    assert heat.heat() is Heat.HEAVY
    sensor(heat.SENSORS / "hwmon4" / "device", "temp2", input=91, crit=90)
    assert heat.heat() is Heat.CRITICAL


@pytest.mark.parametrize(("now", "kind", "expected"), [
    (80, "critical", Heat.NOMINAL), (106, "critical", Heat.CRITICAL), (106, "passive", None),
])  # fmt: skip
def test_a_machine_without_sensors_may_have_thermal_zones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, now: int, kind: str, expected: Heat | None
) -> None:
    """As small boards with ARM do."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(heat, "SENSORS", tmp_path / "hwmon")
    monkeypatch.setattr(heat, "ZONES", tmp_path)
    sensor(tmp_path / "thermal_zone0", "trip_point_0", temp=105)
    (tmp_path / "thermal_zone0" / "temp").write_text(f"{now}000\n")
    (tmp_path / "thermal_zone0" / "trip_point_0_type").write_text(f"{kind}\n")
    assert heat.heat() is expected


# Sleep


def test_the_machine_is_held_awake_and_let_go(bin_folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Never with its display lit, and not a second longer than the job runs."""
    caffeinate = recorded.install(bin_folder, "caffeinate")
    with Awake(process.pid) as held:
        assert held.pid is not None
        program = psutil.Process(held.pid)
        assert held.failed() is None
    assert not program.is_running()
    assert held.program == "caffeinate"
    caffeinate.check()


def test_it_ends_with_the_process_whatever_becomes_of_who_started_it(bin_folder: Path) -> None:
    """A worker that is killed must not leave a Mac that never sleeps again."""
    caffeinate = recorded.install(bin_folder, "caffeinate")
    process = subprocess.Popen(["sleep", "60"])
    held = Awake(process.pid)
    process.kill()
    process.wait()
    assert held._process is not None
    assert held._process.wait(10) == 0
    assert caffeinate.calls == [["-is", "-w", str(process.pid)]]
    held.end()
    caffeinate.check()


def test_a_program_that_fails_says_why(bin_folder: Path, process: subprocess.Popen[bytes]) -> None:
    """The job goes on; its log says that the machine may fall asleep."""
    recorded.install(bin_folder, "caffeinate", fails="no such assertion")
    with Awake(process.pid) as held:
        assert held._process is not None
        held._process.wait(10)
        assert held.failed() == "`caffeinate` ended with code 1: caffeinate: no such assertion"


def test_linux_is_told_by_systemd_where_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a container there is nobody to tell, and so nothing to complain of."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "systemd-inhibit").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(awake, "BOOTED", tmp_path / "none")
    assert awake.command(1) is None
    with Awake(1) as nothing:
        assert (nothing.pid, nothing.failed()) == (None, None)
    monkeypatch.setattr(awake, "BOOTED", tmp_path)
    found = awake.command(42)
    assert found is not None
    assert found[:2] == ["systemd-inhibit", "--what=idle:sleep"]
    assert found[found.index("tail") :] == ["tail", "--pid=42", "--follow", "/dev/null"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads this machine's sensors")
def test_this_machine_can_be_asked() -> None:
    """Whatever it has: no battery, no sensors."""
    assert power.power() is None or isinstance(power.power(), Power)
    assert heat.heat() is None or heat.heat() in Heat
