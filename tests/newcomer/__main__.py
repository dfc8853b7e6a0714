"""Go through a newcomer's first ten minutes: `python -m newcomer`, and with --write into docs/first-job.md.

The source is installed as README.md says, with all that it needs, and the job is trained as `qlora init` writes it.
With --short only a wheel is installed, beside the packages of this Python, and fewer steps are trained: a test.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from newcomer.minutes import Told, Way, first_minutes
from newcomer.page import PAGE, without_the_machine, written
from newcomer.window import Unexpected, environment_of
from support.service import ROOT, short_home

# Two updates of half the layers: the loss falls, and it takes as little as real weights allow.
SHORT = ("samples=0", "epochs=2", "learning_rate=2e-4", "num_layers=8", "steps_per_report=1")


def main() -> int:
    parser = argparse.ArgumentParser(prog="newcomer", description=__doc__)
    parser.add_argument("--short", action="store_true", help="as a test")
    parser.add_argument("--home", type=Path, help="the newcomer's; by default one that is deleted in the end")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if arguments.home is not None:
        return _go(arguments.home.resolve(), short=arguments.short, write=arguments.write)
    with short_home() as home:
        return _go(home, short=arguments.short, write=arguments.write)


def _go(home: Path, *, short: bool, write: bool) -> int:
    way = _from_wheel(home) if short else _from_source(home)
    told, began = Told(), time.monotonic()
    try:
        first_minutes(way, told)
    except Unexpected as error:
        print(json.dumps(told.steps, indent=1, ensure_ascii=False))
        print(error, file=sys.stderr)
        return error.code or 1
    steps = {step: without_the_machine(lines, home) for step, lines in told.steps.items()}
    print("\n\n".join("\n".join(lines) for lines in steps.values()))
    print(f"\n{time.monotonic() - began:.0f} s")
    if write:
        PAGE.write_text(written(PAGE.read_text(), steps))
    return 0


def _from_source(home: Path) -> Way:
    """As README.md says, from what is committed."""
    source = home / "qlorad"
    source.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x"], cwd=source, input=archive.stdout, check=True)
    return Way(
        folder=home,
        environment=_environment(home),
        install=("cd qlorad", "make setup", ". ~/qlorad/.venv/bin/activate; cd"),
        seconds=900.0,
        step=4,
    )


def _from_wheel(home: Path) -> Way:
    """Into an environment of its own, which sees the packages that this one has, but not this source."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(home)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = home.glob("*.whl")
    venv = home / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "beside.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = f'"{sys.executable}" -m pip --python venv/bin/python install'
    (home / "install.sh").write_text(f"{pip} --quiet --no-deps --no-index --ignore-installed {wheel.name}\n")
    cache = Path("~/.cache/qlorad").expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    (home / ".cache").mkdir()
    (home / ".cache" / "qlorad").symlink_to(cache)  # what every home of a user shares, but for the lock of the GPU
    environment = _environment(home) | {
        "QLORAD_GPU_LOCK": str(home / "gpu.lock"),
        "QLORAD_DISK_RESERVE_GB": "0",  # how full the disk of a test machine is must not matter
    }
    return Way(home, environment, ("sh install.sh", ". venv/bin/activate"), SHORT, closes=True)


def _environment(home: Path) -> dict[str, str]:
    """Where the package index is found, the user's pip knows."""
    kept = {"PIP_CACHE_DIR": str(Path("~/.cache/pip").expanduser()), "VIRTUAL_ENV_DISABLE_PROMPT": "1"}
    config = Path("~/.config/pip/pip.conf").expanduser()
    if config.exists() and "PIP_CONFIG_FILE" not in os.environ:
        kept["PIP_CONFIG_FILE"] = str(config)
    return environment_of(home, **kept)


if __name__ == "__main__":
    sys.exit(main())
