"""Which disk a folder lies on, and what kind of disk that is, without touching either: a disk that is away may hang."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

# As getfsstat(2) of macOS and /proc/mounts of Linux name them; 9p is the other side of a virtual machine.
NETWORK = frozenset(
    {"nfs", "nfs4", "smbfs", "smb3", "cifs", "afpfs", "webdav", "davfs", "9p", "fuse.sshfs", "macfuse", "osxfuse"}
    | {"ceph", "glusterfs", "lustre", "fuse.rclone", "fuse.glusterfs", "ftp", "fuse.davfs"}
)
SIMPLE = frozenset({"msdos", "vfat", "exfat", "fuseblk", "ntfs", "ntfs3"})  # neither sockets nor permissions
VOLATILE = frozenset({"tmpfs", "ramfs", "mfs"})


@dataclass(frozen=True)
class Mount:
    """A file system, and where it begins."""

    place: Path
    kind: str

    @property
    def is_network(self) -> bool:
        """Its files lie on another machine."""
        return self.kind in NETWORK

    @property
    def is_simple(self) -> bool:
        """It knows neither sockets nor who may read a file."""
        return self.kind in SIMPLE

    @property
    def is_volatile(self) -> bool:
        """It is gone when the machine starts again."""
        return self.kind in VOLATILE


def mounts() -> tuple[Mount, ...]:
    """Every file system there is. The kernel answers from memory."""
    return tuple(Mount(Path(part.mountpoint), part.fstype.lower()) for part in psutil.disk_partitions(all=True))


def mount_of(path: Path, among: Iterable[Mount]) -> Mount | None:
    """The one that holds the path, by its name alone; of two on one place the later lies over the other."""
    holding = [mount for mount in among if path.is_relative_to(mount.place)]
    return max(reversed(holding), key=lambda mount: len(mount.place.parts), default=None)
