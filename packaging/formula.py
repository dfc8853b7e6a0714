"""Prints the Homebrew formula for a source distribution: `python packaging/formula.py SDIST URL`.

SDIST is the file that `make wheel` builds beside the wheel, URL where it will be downloaded from.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

TEMPLATE = Path(__file__).with_name("homebrew") / "qlorad.rb"


def formula(sdist: Path, url: str) -> str:
    """The formula with address and checksum filled in.

    Raises:
        OSError: the distribution cannot be read.
        ValueError: the address is not of this file, so that Homebrew would take the version from another.
    """
    if not url.startswith("https://") or not url.endswith(f"/{sdist.name}"):
        raise ValueError(f"{url} should begin with https:// and end with /{sdist.name}")
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    _note, _untested, text = TEMPLATE.read_text().split("\n", 2)
    return text.replace("@URL@", url).replace("@SHA256@", digest)


def main() -> int:
    """The command line; the exit code."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 64
    try:
        print(formula(Path(sys.argv[1]), sys.argv[2]), end="")
    except (OSError, ValueError) as error:
        print(f"formula: {error}", file=sys.stderr)
        return 65
    return 0


if __name__ == "__main__":
    sys.exit(main())
