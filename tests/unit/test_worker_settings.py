"""Settings are checked at the start, and say what is wrong without showing a password."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, RedisError

from qlora_client.completion import job_ids, models
from qlora_client.doctor.machine import this_machine
from qlora_client.home import plain_home
from qlora_engine.job.errors import BadSetting
from qlora_worker.__main__ import _log_as_events
from qlora_worker.connection import Keys, check_socket, connect, home_id, in_words
from qlora_worker.settings import SECRET, Settings, is_public, unknown_variables


@pytest.mark.parametrize(
    "url",
    ["redis://:secret@192.168.1.5:6379/0", "redis://example.org", "http://localhost", "redis://h:port", "nonsense"],
)
def test_a_redis_in_the_clear_on_the_network_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Whoever reads along could start trainings, and would have the password."""
    monkeypatch.setenv("QLORAD_REDIS_URL", url)
    with pytest.raises(BadSetting) as caught:
        Settings.read()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["redis://localhost:6379/1", "redis://127.0.0.1", "redis://[::1]:6379", "rediss://:p@example.org", "unix:///s"],
)
def test_tls_and_this_machine_are_allowed(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The ways in which nobody can listen."""
    monkeypatch.setenv("QLORAD_REDIS_URL", url)
    settings = Settings.read()
    assert settings.redis_url is not None
    assert url not in repr(settings)
    connect(settings, timeout=1).close()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("STALL_SECONDS", "abc", "it is 'abc', but it should be a number."),
        ("LOW_BATTERY", "2.5", "it is '2.5', but it should be a whole number."),
        ("KEEP_AWAKE", "maybe", "it is 'maybe', but it should be 1 or 0."),
        ("METRICS_PORT", "0", "it is '0', but it should be at least 1."),
    ],
)
def test_a_value_that_cannot_be_used_is_shown_with_what_would_be_right(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    """In the words of the page of settings."""
    monkeypatch.setenv(f"QLORAD_{name}", value)
    with pytest.raises(BadSetting) as caught:
        Settings.read()
    assert caught.value.what == f"QLORAD_{name} cannot be used: {says}"


def test_what_all_settings_begin_with_makes_none_of_them_near() -> None:
    """QLORAD_HOME is not what anybody meant by QLORAD_FOO."""
    assert unknown_variables({"QLORAD_FOO": "1"}) == [("QLORAD_FOO", None)]
    assert unknown_variables({"qlorad_stal_seconds": "1"}) == [("qlorad_stal_seconds", "QLORAD_STALL_SECONDS")]


def test_another_machine_in_the_clear_must_be_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a VPN the network is encrypted already; nobody but its owner can know that."""
    monkeypatch.setenv("QLORAD_REDIS_URL", "redis://:secret@10.0.0.5:6379/0")
    with pytest.raises(BadSetting, match="QLORAD_REDIS_INSECURE"):
        Settings.read()
    monkeypatch.setenv("QLORAD_REDIS_INSECURE", "1")
    assert Settings.read().redis_url is not None
    monkeypatch.setenv("QLORAD_REDIS_URL", "http://10.0.0.5")
    with pytest.raises(BadSetting):
        Settings.read()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:abc@s3cr/et@127.0.0.1:6379/0",
        "redis://:p@s3cr#et@127.0.0.1:6379/0",
        "redis://me:s3cr?et@127.0.0.1/0",
        "redis://:1#s3cr@127.0.0.1/0",
        "redis://:1?s3cr@127.0.0.1/0",
        "s3cr://et@127.0.0.1",
    ],
)
def test_a_password_that_is_not_encoded_is_not_shown_in_part(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What then stands where the host should be is a piece of it, and may be a machine of somebody else."""
    monkeypatch.setenv("QLORAD_REDIS_URL", url)
    with pytest.raises(BadSetting) as caught:
        Settings.read()
    assert "s3cr" not in str(caught.value)
    assert ("%40" in str(caught.value)) is url.startswith("redis")


@pytest.mark.parametrize(
    "url", ["redis:///0?host=example.org", "redis://127.0.0.1/0?port=7", "redis:///0?ho%73t=example.org"]
)
def test_a_host_among_the_options_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The library goes there, in the clear, though the address seems to be of this machine."""
    monkeypatch.setenv("QLORAD_REDIS_URL", url)
    with pytest.raises(BadSetting, match="behind its `\\?`"):
        Settings.read()


def test_what_is_wrong_with_a_server_is_said_without_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is kept for months and sent to others."""
    monkeypatch.setenv("QLORAD_REDIS_URL", "rediss://:secret@127.0.0.1:1/0")
    with pytest.raises(RedisError, match=r"127\.0\.0\.1") as caught, connect(Settings.read(), timeout=1) as connection:
        connection.ping()
    assert in_words(caught.value) == "no connection: Connection refused"
    said = [
        in_words(error)
        for error in (MovedError("3999 10.0.0.5:6381"), ConnectionError("10.0.0.5"), OSError("10.0.0.5"))
    ]
    assert not [words for words in said if "10.0.0.5" in words]


def test_what_a_library_logs_of_redis_has_no_address_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    """RQ logs its trouble, and the daemon keeps what it logs."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        _log_as_events()
        log = logging.getLogger("rq.worker")
        log.error("could not connect: %s in %d", RedisConnectionError("Error 111 connecting to vault.corp:6399"), 2)
        log.error("an unhandled exception", exc_info=RedisConnectionError("Error 111 connecting to vault.corp:6399"))
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
    said = capsys.readouterr().err
    assert "could not connect: no connection in 2" in said
    assert "vault" not in said


def test_options_of_the_address_that_there_are_not_are_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library's own error may quote the address, and the daemon's log is kept for months."""
    monkeypatch.setenv("QLORAD_REDIS_URL", "redis://:secret@127.0.0.1/0?socket_timeout=soon")
    with pytest.raises(BadSetting) as caught:
        connect(Settings.read(), timeout=1)
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(caught.value.__context__)


def test_what_may_hold_a_password_is_secret() -> None:
    """Whoever adds such a setting gets it left out wherever settings are shown."""
    assert {"QLORAD_REDIS_URL", "QLORAD_NOTIFY"} == SECRET
    assert [is_public(name) for name in ("QLORAD_HOME", "QLORAD_NOTIFY", "QLORAD_TYPO")] == [True, False, False]


def test_an_empty_url_means_the_embedded_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compose file that passes an unset variable on gives an empty one."""
    monkeypatch.setenv("QLORAD_REDIS_URL", "")
    assert Settings.read().redis_url is None


def test_a_bad_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The person must find it among all the variables of a plist."""
    monkeypatch.setenv("QLORAD_SETTLE_SECONDS", "soon")
    with pytest.raises(BadSetting, match="QLORAD_SETTLE_SECONDS"):
        Settings.read()


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_means_the_usual_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty: str) -> None:
    """It would be the current folder, and what is deleted with the home is all that lies there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QLORAD_HOME", empty)
    monkeypatch.setenv("QLORAD_GPU_LOCK", empty)
    settings = Settings.read()
    assert settings.home == settings.folders.path == plain_home().path == tmp_path / "qlora"
    assert settings.gpu_lock_path == tmp_path / ".cache/qlorad/gpu.lock"
    monkeypatch.setenv("QLORAD_POWER", "solar")
    assert this_machine().home.path == tmp_path / "qlora"


def test_a_path_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program that changes its folder would look for another home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in ("rel", "./rel", "~/rel"):
        monkeypatch.setenv("QLORAD_HOME", named)
        assert Settings.read().home == plain_home().path == tmp_path / "rel"


def test_the_home_of_nobody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a wrong value, no bug; the doctor and a shell that completes go on."""
    monkeypatch.setenv("QLORAD_HOME", "~nosuchuser/q")
    for read in (Settings.read, plain_home):
        with pytest.raises(BadSetting, match=r"QLORAD_HOME cannot be used: .*nosuchuser"):
            read()
    assert isinstance(this_machine().problem, BadSetting)
    assert (job_ids(""), models("")) == ([], [])


def test_variables_that_are_no_settings_are_found_with_the_one_that_was_meant() -> None:
    """pydantic-settings passes over them in silence."""
    environment = {"QLORAD_HOM": "x", "QLORAD_HOME": "y", "QLORAD_XYZZY_PLUGH_FROTZ_OZMOO": "", "HOME": "/"}
    assert unknown_variables(environment) == [("QLORAD_HOM", "QLORAD_HOME"), ("QLORAD_XYZZY_PLUGH_FROTZ_OZMOO", None)]


def test_a_socket_path_that_does_not_fit_is_refused_with_a_remedy() -> None:
    """The system's own error names neither the path nor the way out."""
    assert check_socket(Path("/" + "a" * 102))
    with pytest.raises(BadSetting, match="QLORAD_HOME"):
        check_socket(Path("/" + "a" * 103))


def test_two_homes_never_share_a_name_in_redis(tmp_path: Path) -> None:
    """On one Redis they would answer each other's requests and train each other's jobs."""
    ids = [home_id(Settings(home=tmp_path / name).folders) for name in ("a", "b", "a")]
    assert ids[0] == ids[2] != ids[1]
    for name in (Keys(ids[0]).queue, Keys(ids[0]).requests, Keys(ids[0]).answer("k")):
        assert ids[0] in name
