"""Installs a wheel of qlorad as a user would, far from the source, and runs what a user runs first.

`python packaging/try_install.py WHEEL --by uv` installs with `uv tool install`, `--by pipx` with pipx, `--by pip` into
a virtual environment. Then `qlora demo` must work there, unless `--no-demo` leaves it at the quick commands. uv and
pipx are taken from PATH, or installed into the temporary folder that all of it happens in.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BY = ("pip", "uv", "pipx")
SETTINGS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # what could let the source shine through


def main() -> int:
    """Try one way to install; the exit code of the first command that fails."""
    arguments = _parse()
    # Short, since the daemon's socket lies below it and its path may have 103 bytes.
    folder = Path(tempfile.mkdtemp(prefix="qi", dir="/tmp" if Path("/tmp").is_dir() else None)).resolve()  # noqa: S108
    try:
        return _try(arguments.wheel.resolve(), arguments.by, arguments.extra, folder, demo=arguments.demo)
    except subprocess.CalledProcessError as error:
        print(f"failed with {error.returncode}: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return error.returncode or 1
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--by", choices=BY, required=True)
    parser.add_argument("--extra", default="cpu" if sys.platform == "linux" else "", help="of the package")
    parser.add_argument("--no-demo", dest="demo", action="store_false")
    parser.add_argument("--keep", action="store_true", help="leave the folder where it happened")
    return parser.parse_args()


def _try(wheel: Path, by: str, extra: str, folder: Path, *, demo: bool) -> int:
    environment = _environment(folder)
    wanted = f"{wheel}[{extra}]" if extra else str(wheel)
    began = time.monotonic()
    qlora = _install(wanted, by, folder, environment)
    print(f"installed by {by} in {time.monotonic() - began:.0f} s: {qlora}", flush=True)
    qlorad = qlora.with_name("qlorad")
    for command in ([qlora, "--version"], [qlorad, "--version"], [qlora, "ls"], [qlora, "models", "ls"]):
        _run([*command], folder, environment)
    if demo:
        began = time.monotonic()
        _run([qlora, "demo"], folder, environment)
        print(f"qlora demo worked in {time.monotonic() - began:.0f} s, installed by {by}", flush=True)
    return 0


def _environment(folder: Path) -> dict[str, str]:
    """The user's environment with a home of its own, and nothing that leads to the source."""
    left_out = {name for name in os.environ if name.startswith("QLORAD_")}.union(SETTINGS)
    return {name: value for name, value in os.environ.items() if name not in left_out} | {
        "HOME": str(folder),
        "QLORAD_HOME": str(folder / "q"),
        "PIPX_HOME": str(folder / "pipx"),
        "PIPX_BIN_DIR": str(folder / "bin"),
        "UV_TOOL_DIR": str(folder / "tools"),
        "UV_TOOL_BIN_DIR": str(folder / "bin"),
        "UV_CACHE_DIR": str(folder / "cache"),
    }


def _install(wanted: str, by: str, folder: Path, environment: dict[str, str]) -> Path:
    """Install, and say where the command is."""
    match by:
        case "pip":
            _run([sys.executable, "-m", "venv", folder / "venv"], folder, environment)
            _run([folder / "venv/bin/python", "-m", "pip", "install", "--quiet", wanted], folder, environment)
            return folder / "venv/bin/qlora"
        case "uv":
            install = [_tool("uv", folder, environment), "tool", "install", "--python", sys.executable]
            _run([*install, wanted], folder, environment)
        case _:
            install = [_tool("pipx", folder, environment), "install", "--python", sys.executable]
            _run([*install, wanted], folder, environment)
    return folder / "bin/qlora"


def _tool(name: str, folder: Path, environment: dict[str, str]) -> Path:
    if found := shutil.which(name):
        return Path(found)
    _run([sys.executable, "-m", "venv", folder / "installer"], folder, environment)
    _run([folder / "installer/bin/python", "-m", "pip", "install", "--quiet", name], folder, environment)
    return folder / "installer/bin" / name


def _run(command: list[str | Path], folder: Path, environment: dict[str, str]) -> None:
    subprocess.run([*map(str, command)], cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    sys.exit(main())
