"""Where an endpoint is: `http://HOST:PORT/v1`, with `#MODEL` behind it (or `?model=MODEL`) where its server has several."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from compress.errors import UserError
from compress.files.user_paths import SERVED

KEY = "PARE_API_KEY"
TIMEOUT = 600.0  # seconds until something of an answer must have come
# What is wrong with one in place of a model, and what to do.
NO_MODEL = "is an endpoint: its weights are its server's, so nothing can be made of them here"
COMPARED = "give the model's folder; two endpoints are compared by `pare eval URL URL`"
FORM = "write http://HOST:PORT/v1, with #MODEL behind it where the server has several"


@dataclass(frozen=True)
class Address:
    """base: scheme, host and path, without a slash at its end. model: what its server calls it; "": it has one."""

    base: str
    model: str = ""

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.base).netloc

    def __str__(self) -> str:
        return f"{self.base}#{self.model}" if self.model else self.base


def is_address(named: str) -> bool:
    """Whether a side is named by where it is served."""
    return named.lower().startswith(SERVED)


def read_address(named: str) -> Address:
    """The address in what a command names.

    Raises:
        UserError: it has no host, or holds a password, a port that is none, or a query other than the model.
    """
    try:
        parts = urlsplit(named)
        secret, host = parts.username or parts.password, parts.hostname
        parts.port  # noqa: B018  (it is read here, and refused where it is no number)
    except ValueError as error:
        raise UserError(f"is no address: {error}", place=named, fix=FORM) from error
    if secret:  # not shown again: reports hold addresses
        message = "an endpoint's address holds a user's name or password"
        raise UserError(message, fix=f"leave it out, and set a key in the environment: {KEY}")
    if not host:
        raise UserError("names no host", place=named, fix=FORM)
    asked = parse_qs(parts.query, keep_blank_values=True)
    if further := sorted(asked.keys() - {"model"}):
        message = f"the address of {parts.netloc} holds {', '.join(further)} behind ?"
        raise UserError(message, fix=f"leave it out; a key is set in the environment: {KEY}")
    named_so = {name for name in (unquote(parts.fragment), *asked.get("model", ())) if name}
    if len(named_so) > 1:
        raise UserError(f"names two models, {' and '.join(sorted(named_so))}", place=named, fix=FORM)
    path = parts.path.rstrip("/") or "/v1"
    return Address(f"{parts.scheme}://{parts.netloc}{path}", next(iter(named_so), ""))
