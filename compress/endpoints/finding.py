"""What an address names: its server's model, chosen out of the list that it gives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from compress.endpoints.address import FORM, KEY, TIMEOUT, Address, read_address
from compress.endpoints.calls import Client, EndpointError
from compress.endpoints.served import Served
from compress.errors import UserError, near

ANEW = ("created", "permission")  # of a list: what is made anew for each answer
UNLISTED = (404, 405, 501)  # how servers answer that do not list their models


def find_endpoint(named: str, side: str, timeout: float = TIMEOUT) -> Served:
    """What an address names; its server is asked for its models.

    Args:
        side: baseline or candidate, which may have a key of its own: `PARE_BASELINE_API_KEY`.

    Raises:
        UserError: the address is none, the key cannot be sent, nobody answers, or it is not clear which of several models is meant.
    """
    address = read_address(named)
    client = Client(address, timeout, _key(KEY.replace("_", f"_{side.upper()}_", 1)))
    try:
        content = client.get("models")
    except EndpointError as error:
        if error.status not in UNLISTED:
            raise
        if not address.model:
            message = "does not list its models (/models), so none can be chosen"
            raise EndpointError(message, place=named, fix="name one: …/v1#MODEL") from error
        return Served(Path(), "", {}, address=address, client=client)
    model, listed = _chosen(address, content)
    client.address = Address(address.base, model)
    return Served(Path(), "", {}, address=client.address, client=client, listed=listed)


def _key(own: str) -> str:
    """The key in the side's own variable or the common one, "" for none. Files of secrets end with a line's end, which is no part of it.

    Raises:
        UserError: it holds what no header can; it is not shown.
    """
    name = own if os.environ.get(own, "").strip() else KEY
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        message = "holds a key with characters that cannot be sent: a line's end within, or none of ASCII"
        raise UserError(message, place=name, fix=f"set {name} to the key alone")
    return key


def _chosen(address: Address, content: Any) -> tuple[str, dict[str, Any]]:
    """The model that is meant, and what the list tells of it."""
    rows = content.get("data") if isinstance(content, dict) else None
    known = {str(row["id"]): row for row in rows or () if isinstance(row, dict) and "id" in row}
    if not known:
        raise EndpointError("lists no model (/models)", place=str(address), fix=f"let its server load one; {FORM}")
    names = tuple(known)
    if not address.model and len(names) > 1:
        message = f"has {len(names)} models: {', '.join(names)}"
        raise UserError(message, place=str(address), fix=f"name one: {address.base}#{names[0]}")
    if address.model and address.model not in known:
        raise UserError(f"has no model {address.model}", place=address.base, fix=near(address.model, names))
    model = address.model or names[0]
    return model, {name: value for name, value in known[model].items() if name not in ANEW}
