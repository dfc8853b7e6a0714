"""Write the report of a run folder and print its path: `python -m qlora_engine.report RUN_FOLDER`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from qlora_engine.job.errors import Exit, JobRejected, QloradError
from qlora_engine.job.folder import RunFolder
from qlora_engine.report.page import write_report


def main() -> int:
    """Write one report."""
    parser = argparse.ArgumentParser(prog="qlora_engine.report", description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--json", action="store_true", help="say an error as JSON")
    arguments = parser.parse_args()
    folder: Path = arguments.run
    try:
        run = RunFolder(folder.expanduser().absolute())
        if not run.events.is_file() and not run.spec.is_file():
            raise JobRejected(
                f"{folder} is not a run folder: it holds neither spec.json nor events.jsonl.",
                where=str(folder),
                remedy="Name a folder of runs/, for example ~/qlora/runs/<job id>.",
            )
        print(write_report(run))  # noqa: T201
    except QloradError as error:
        print(json.dumps(error.as_dict()) if arguments.json else error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
