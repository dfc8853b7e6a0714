"""What transformers finds out about its own files whenever it is imported, kept: a second of every training process.

At its import transformers reads the source of some 3,300 files to learn which module defines which name. The answer is
the same until it is installed anew, so it is kept in the user's cache, for the path and the age of the file that asks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

READER = "transformers.utils.import_utils"
FUNCTION = "create_import_structure_from_path"
CACHE = Path("~/.cache/qlorad")  # beside the GPU lock; every home of a user shares it

# By name of a folder, again such a structure; by set of required backends, the names that each module defines.
Structure = dict[Any, Any]


def keep_structure() -> None:
    """From now on an import of transformers reads what an earlier one has found out, if it has been kept."""
    wrapt.register_post_import_hook(lambda module: use_kept(module, CACHE.expanduser()), READER)


def use_kept(reader: ModuleType, cache: Path) -> None:
    """Have the module that reads the sources look its answers up.

    A transformers that does without that module or function is left as it is.

    Args:
        reader: `transformers.utils.import_utils`.
        cache: the folder of what is kept, one file for each place where transformers is installed.
    """
    plain: Callable[[Any], Structure] | None = getattr(reader, FUNCTION, None)
    if plain is None or reader.__file__ is None:
        return
    models = Path(reader.__file__).parents[1] / "models"
    whole = _structure(plain, models, Path(reader.__file__), cache)

    def look_up(path: str | Path) -> Structure:
        folder = Path(path)
        folder = folder.parent if folder.suffix == ".py" else folder
        if not folder.is_relative_to(models):
            return plain(path)
        found: Structure | None = whole
        for part in folder.relative_to(models).parts:
            found = found.get(part) if found else None
        return plain(path) if found is None else found

    setattr(reader, FUNCTION, look_up)


def _structure(plain: Callable[[Any], Structure], models: Path, reader: Path, cache: Path) -> Structure:
    file = cache / f"names-{hashlib.sha256(str(reader).encode()).hexdigest()[:12]}.json"
    about = {"reader": str(reader), "modified": reader.stat().st_mtime_ns}
    try:
        kept = json.loads(file.read_bytes())
        if kept["about"] == about and (structure := _decoded(kept["structure"])):
            return structure
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not kept yet, or not by us: it is found out again
    structure = plain(models)
    _keep(file, {"about": about, "structure": _encoded(structure)})
    return structure


def _keep(path: Path, content: dict[str, Any]) -> None:
    # Neither durable nor certain: without it an import takes a second longer.
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content))
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _encoded(structure: Structure) -> list[Any]:
    """As JSON can hold it: a folder's name stays a string, a set of backends becomes a list."""
    return [
        [name, _encoded(inner)]
        if isinstance(name, str)
        else [sorted(name), {module: sorted(names) for module, names in inner.items()}]
        for name, inner in structure.items()
    ]


def _decoded(pairs: list[Any]) -> Structure:
    return {
        name if isinstance(name, str) else frozenset(name): _decoded(inner)
        if isinstance(name, str)
        else {module: set(names) for module, names in inner.items()}
        for name, inner in pairs
    }
