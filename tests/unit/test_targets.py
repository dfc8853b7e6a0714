"""Where messages go: a file of secrets that only its owner reads, and names that a job may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_engine.job.errors import BadSetting, JobRejected
from qlora_engine.job.targets import check_targets, read_targets

KEY = "tok3n"


def targets(path: Path, text: str, mode: int = 0o600) -> Path:
    file = path / "notify.toml"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_each_name_has_its_addresses(tmp_path: Path) -> None:
    """One name may reach a phone and a mailbox."""
    file = targets(tmp_path, f'phone = "ntfy://{KEY}"\nall = ["ntfy://a", "mailto://b"]\n')
    assert read_targets(file) == {"phone": [f"ntfy://{KEY}"], "all": ["ntfy://a", "mailto://b"]}
    assert read_targets(tmp_path / "none.toml") == {}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_not_used(tmp_path: Path, mode: int) -> None:
    """Whoever has the address of a topic can send to it, and read it."""
    with pytest.raises(BadSetting, match="can be read by others") as refused:
        read_targets(targets(tmp_path, 'phone = "ntfy://x"', mode))
    assert "chmod 600" in str(refused.value.remedy)


@pytest.mark.parametrize(
    "text",
    [
        f"phone = {KEY}://x",
        f'phone = "{KEY}"',
        f"phone = 5 # {KEY}",
        f'"a b" = "ntfy://{KEY}"',
        f'phone = ["ntfy://{KEY}"',
        f'[phone]\nurl = "ntfy://{KEY}"',
        "phone = []",
    ],
)
def test_what_is_wrong_with_it_is_said_without_showing_what_stands_there(tmp_path: Path, text: str) -> None:
    """The message goes to a log that is shown to others."""
    with pytest.raises(BadSetting) as refused:
        read_targets(targets(tmp_path, text))
    assert KEY not in f"{refused.value.what} {refused.value.where} {refused.value.remedy}".replace(str(tmp_path), "")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """It could be changed by whoever owns its place."""
    targets(tmp_path, 'phone = "ntfy://x"').rename(tmp_path / "real")
    (tmp_path / "notify.toml").symlink_to(tmp_path / "real")
    with pytest.raises(BadSetting, match="cannot be read"):
        read_targets(tmp_path / "notify.toml")


def test_a_job_may_name_targets_that_there_are(tmp_path: Path) -> None:
    """Better refused when it is submitted than silent in the morning."""
    file = targets(tmp_path, 'phone = "ntfy://x"\nmail = "mailto://y"\n')
    check_targets(["phone", "mail"], file)
    check_targets([], tmp_path / "none.toml")
    with pytest.raises(JobRejected, match="'fone'") as refused:
        check_targets(["phone", "fone"], file)
    assert "There are: mail, phone." in str(refused.value.remedy)
    assert refused.value.where == "notify"
    with pytest.raises(JobRejected, match="can be read by others"):
        check_targets(["phone"], targets(tmp_path, 'phone = "ntfy://x"', 0o644))
