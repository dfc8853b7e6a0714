"""Which start of the machine this is, from what systems say."""

from __future__ import annotations

import sys

import pytest

from qlora_daemon.boot import boot_id, from_boottime, from_uuid


def test_linux_and_macos_name_each_start() -> None:
    """A job that panics the machine is held only if one start can be told from the next."""
    assert from_uuid("d2f0b3c8-5e0f-4f5e-9a38-0a4c1d0b7d11\n") == "d2f0b3c8-5e0f-4f5e-9a38-0a4c1d0b7d11"
    assert from_uuid("7B2C9E0A-1D44-4E0B-8C59-6E1F3A2B4C5D\n") == "7b2c9e0a-1d44-4e0b-8c59-6e1f3a2b4c5d"


def test_an_older_macos_tells_the_time_of_its_start() -> None:
    """There the clock, when it is set by seconds, may not look like a reboot."""
    first = from_boottime("{ sec = 1763880000, usec = 123456 } Sun Nov 23 06:40:00 2025\n")
    assert first == from_boottime("{ sec = 1763880007, usec = 1 } Sun Nov 23 06:40:07 2025\n")
    assert first != from_boottime("{ sec = 1763890000, usec = 123456 } Sun Nov 23 09:26:40 2025\n")


@pytest.mark.parametrize("text", ["", "sysctl: unknown oid 'kern.bootsessionuuid'\n", "garbage"])
def test_a_system_that_does_not_tell_is_no_reboot(text: str) -> None:
    """Nothing may be held because of a name that is not there."""
    assert from_uuid(text) is None
    assert from_boottime(text) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_tells() -> None:
    """The same at each call."""
    assert boot_id() is not None
    assert boot_id() == boot_id()
