"""Kernels that MLX has compiled on this machine, kept for the processes that come.

What MLX fuses it compiles while it runs: on Linux with the system's C++ compiler, on CUDA with NVRTC, where the kernels
of a model take minutes. It leaves them in `mlx/<version>` below the folder for temporary files and takes what it finds
there as it is, a file that a kill has cut off, too, which ends every later process. So an attempt compiles in a folder
of its own, which begins with what earlier ones left when they ended well. A Mac's system keeps Metal's kernels itself.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from qlora_engine.job.folder import slug
from qlora_engine.job.together import sync_folders

MLX = "mlx"  # below the folder for temporary files
KEPT = {".so", ".ptx", ".txt"}  # libraries, and on CUDA cubins with the names in them; sources are not read again
MOST_BYTES = 512 << 20  # of one device's kernels, beyond which they begin anew


class KernelCache:
    """The kernels of one version of MLX for one device.

    Args:
        folder: of the home, which may be deleted at any time.
        version: of MLX.
        device: its backend and name; a cubin of one GPU does not run on another.
    """

    def __init__(self, folder: Path, version: str, device: str) -> None:
        self._folder, self._version, self._device = folder, version, device

    @property
    def _kept(self) -> Path:
        return self._folder / slug(f"{self._version} {self._device}")

    def lend(self, temporary: Path) -> int:
        """Put the kernels where MLX looks for them; returns how many files.

        Args:
            temporary: the attempt's own folder for temporary files.

        Raises:
            OSError: the disk is full.
        """
        names = _kernels(self._kept)
        for name in names:
            _link(self._kept / name, temporary / MLX / name)
        return len(names)

    def keep(self, temporary: Path) -> int:
        """Keep what an attempt has compiled that ended well; returns how many files are new.

        All appear at once, forced to the disk, in place of those that were kept.

        Raises:
            OSError: the disk is full; what was kept is kept, or at worst compiled again.
        """
        made, known = _kernels(temporary / MLX), set(_kernels(self._kept))
        new = [name for name in made if name not in known]
        if not new:
            return 0
        coming = self._folder / f".coming-{os.getpid()}"
        forget(coming)
        try:
            for name in made:
                _link(temporary / MLX / name, coming / name)
            sync_folders([coming, *(path for path in sorted(coming.rglob("*")) if path.is_dir())])
            forget(self._kept)
            if sum((coming / name).stat().st_size for name in made) <= MOST_BYTES:
                coming.rename(self._kept)
        finally:
            forget(coming)
        self._forget_other_versions()
        return len(new)

    def _forget_other_versions(self) -> None:
        for path in self._folder.iterdir():
            if path.name.startswith(".coming-") or not path.name.startswith(slug(self._version)):
                forget(path)


def forget(folder: Path) -> None:
    """Delete kernels: one of them may be why a process crashed."""
    shutil.rmtree(folder, ignore_errors=True)


def _kernels(folder: Path) -> list[Path]:
    """Where kernels lie in a folder."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix in KEPT and path.is_file())


def _link(source: Path, target: Path) -> None:
    """The same file in another place; a copy where that is on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(source, target)
