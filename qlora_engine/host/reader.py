"""Reads folders and files, and prints what came of each as soon as it is known: a program of its own, for `reach`.

A thread for each, so that one that hangs does not keep the others. Only the standard library's quick parts: this runs
with `python -I -S`, and is started whenever somebody asks.
"""

import json
import os
import sys
import threading


def read(path: str) -> dict[str, object]:
    """What a person would find who opens it: `os.access` alone knows nothing of the folders that macOS guards."""
    try:
        about = os.stat(path)  # noqa: PTH116  # pathlib would take longer to import than all of this
        if os.path.isdir(path):  # noqa: PTH112
            with os.scandir(path) as entries:
                next(entries, None)
        else:
            with open(path, "rb") as file:  # noqa: PTH123
                file.read(1)
    except OSError as error:
        return {"path": path, "error": error.errno or 1, "why": error.strerror or str(error)}
    writable = os.access(path, os.W_OK)
    return {"path": path, "error": None, "writable": writable, "owner": about.st_uid, "mode": about.st_mode}


def main(paths: list[str]) -> None:
    """Print a JSON line for each path, in the order in which they answer."""
    lock = threading.Lock()

    def tell(path: str) -> None:
        line = json.dumps(read(path)) + "\n"
        with lock:
            sys.stdout.write(line)
            sys.stdout.flush()

    for path in paths:
        threading.Thread(target=tell, args=(path,)).start()


if __name__ == "__main__":
    main(sys.argv[1:])
