"""One run at a time measures on a device: two that did would each be timed under the other's load."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.events import Emit, Event
from compress.files.locks import LOCKS, locked
from compress.machine.devices import kind_of


@contextmanager
def turn(device: str, emit: Emit) -> Iterator[None]:
    """Within: no other run of this user measures on the device, on this machine. Who waits says so."""
    place = Path(tempfile.gettempdir()) / f"pare-{os.getuid()}" / LOCKS / f"timing {identity(device)}"
    place.parent.mkdir(parents=True, exist_ok=True)
    kind = "this GPU" if kind_of(device) == "cuda" else "this machine"

    def waiting() -> None:
        holder = place.read_text(errors="replace").strip()
        which = f"process {holder}, another run," if holder.isdigit() else "another run"
        emit(Event("note", "timing", f"waits its turn: {which} measures on {kind}"))

    with locked(place, waiting):
        place.write_text(f"{os.getpid()}\n")
        yield


def identity(device: str) -> str:
    """What of a device all processes call alike: a GPU's UUID, for each process counts those that it may use."""
    if kind_of(device) != "cuda":
        return device
    import torch

    return str(torch.cuda.get_device_properties(device).uuid)
