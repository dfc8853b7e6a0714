"""The client: submit, watch and cancel jobs, from the shell or from Python: `from qlora_client import Client`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_client.api import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: the shell command begins with this package, and its help needs none of it.
    if name == "Client":
        from qlora_client.api import Client  # noqa: PLC0415

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
