"""What is no job is turned away with a reason, and never stops the daemon."""

from __future__ import annotations

import os
from pathlib import Path

from qlora_engine.job.states import State
from support.service import Daemon, write_rows

# name: content, and a word that the reason must hold
FILES: dict[str, tuple[bytes, str]] = {
    "key.yaml": (b"model: m\nlearning_rat: 1e-5\n", "learning_rate"),
    "type.yaml": (b"model: m\niters: many\n", "iters"),
    "syntax.yaml": (b"model: [m\niters: 3\n", "line 2"),
    "binary.yaml": (bytes(range(256)) * 20, "not text"),
    "nul.json": (b'{"model": "m\0"}', "not text"),
    "huge.yaml": (b"# padding\n" * 10_000_000, "100,000,000"),
    "empty.yaml": (b"", "empty"),
    "notes.txt": (b"hello", ".txt"),
    "bomb.yaml": (
        b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (c, c, *[c - 1] * 7) for c in range(98, 108)),
        "aliases",
    ),
    "deep.yaml": (b"model: " + b"[" * 5000 + b"]" * 5000, "nested"),
    "relative.yaml": (b"model: MODEL\ndata: ./data\n", "qlora submit"),
}


def test_each_is_moved_aside_with_what_where_and_remedy(shared: Daemon) -> None:
    """Without the reason beside it a rejected file is a riddle; with a daemon that died of it, a disaster."""
    expected = {name: word for name, (_, word) in FILES.items()}
    for name, (content, _) in FILES.items():
        (shared.home.jobs / name).write_bytes(content.replace(b"MODEL", bytes(shared.model())))
    expected |= _drop_folders(shared)
    (shared.home.jobs / "link.yaml").symlink_to("/etc/hostname")
    expected["link.yaml"] = "symbolic link"
    os.mkfifo(shared.home.jobs / "pipe.yaml")
    expected["pipe.yaml"] = "not a regular file"
    for name, word in expected.items():
        event = shared.wait_for("file.rejected", 60, path=str(shared.home.jobs / name))
        assert Path(event["moved_to"]) == shared.home.rejected / name
        text = (shared.home.rejected / f"{name}.txt").read_text()
        assert word in text, (name, text)
        assert all(f"\n{part}" in text for part in ("what:", "where:", "remedy:", "time:"))
        assert ".taking" not in text
        assert "Traceback" not in text
        assert not os.path.lexists(shared.home.jobs / name)
    assert not shared.jobs()
    shared.drop("good.yaml", shared.text(iters=1))
    shared.wait_for_state("good", State.DONE)


def _drop_folders(daemon: Daemon) -> dict[str, str]:
    """Job folders with something wrong in them, each with a word that its reason must hold."""
    rows = daemon.home.path / "bad"
    write_rows(rows)
    lines = (rows / "train.jsonl").read_text().splitlines()
    contents = {
        "no-data": (None, "train.jsonl"),
        "no-rows": ("", "no rows"),
        "bad-row": ("\n".join([*lines[:2], "{not json", *lines[2:]]), "line 3"),
        "bad-form": ('{"question": "?"}\n', "prompt"),
    }
    for name, (content, _) in contents.items():
        folder = daemon.home.path / name
        (folder / "data").mkdir(parents=True)
        if content is not None:
            (folder / "data" / "train.jsonl").write_text(content)
        (folder / "job.yaml").write_text(f"model: {daemon.model()}\ndata: data\n")
        folder.rename(daemon.home.jobs / name)
    missing = daemon.home.path / "no-model"
    write_rows(missing / "data")
    (missing / "job.yaml").write_text("model: nonesuch\ndata: data\n")
    missing.rename(daemon.home.jobs / "no-model")
    return {name: word for name, (_, word) in contents.items()} | {"no-model": "nonesuch"}


def test_a_name_that_is_taken_in_rejected_gets_a_number(daemon: Daemon) -> None:
    """The second failure may not hide or destroy the first, nor a file that only looks like our text."""
    (daemon.home.rejected / "a.yaml").write_text("an older one")
    (daemon.home.rejected / "b.yaml.txt").write_text("not ours")
    daemon.start()
    daemon.drop("a.yaml", "model: [")
    daemon.drop("b.yaml", "model: [")
    for name, moved in (("a.yaml", "a-2.yaml"), ("b.yaml", "b-2.yaml")):
        event = daemon.wait_for("file.rejected", path=str(daemon.home.jobs / name))
        assert Path(event["moved_to"]).name == moved
        assert (daemon.home.rejected / f"{moved}.txt").exists()
    assert (daemon.home.rejected / "a.yaml").read_text() == "an older one"
    assert (daemon.home.rejected / "b.yaml.txt").read_text() == "not ours"
