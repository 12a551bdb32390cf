"""Where an endpoint is: `http://HOST:PORT/v1`, with `#MODEL` behind it (or `?model=MODEL`) where its server has several."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlsplit

from compress.errors import UserError
from compress.files.user_paths import SERVED

KEY = "PARE_API_KEY"
TIMEOUT = 600.0  # seconds until something of an answer must have come
HERE, LOOPBACK = "localhost", ("localhost", "::1")
SENT = "/%:@!$&'()*+,;="  # of a path, what is sent as it stands; the rest that is no letter or digit of ASCII is quoted
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

    @property
    def machine(self) -> str:
        """The host without its port; this machine has one name."""
        name = urlsplit(self.base).hostname or ""
        return HERE if name in LOOPBACK or name.startswith("127.") else name

    def __str__(self) -> str:
        return f"{self.base}#{self.model}" if self.model else self.base


def plain(named: str) -> str:
    """What a command names, as a message may show it: without a user's name, a password or a query, even where it is no address."""
    scheme, _, rest = named.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def is_address(named: str) -> bool:
    """Whether a side is named by where it is served."""
    return named.lower().startswith(SERVED)


def read_address(named: str) -> Address:
    """The address in what a command names.

    Raises:
        UserError: it has no host, or holds a space, a password, a port that is none, or a query other than the model.
    """
    try:
        parts = urlsplit(named)
        secret, host = parts.username or parts.password, parts.hostname
        parts.port  # noqa: B018  (it is read here, and refused where it is no number)
    except ValueError as error:
        why = "" if "@" in named else f": {error}"  # which may quote a password
        raise UserError(f"is no address{why}", place=plain(named), fix=FORM) from None
    if secret:  # not shown again: reports hold addresses
        message = "an endpoint's address holds a user's name or password"
        raise UserError(message, fix=f"leave it out, and set a key in the environment: {KEY}")
    if not host:
        raise UserError("names no host", place=plain(named), fix=FORM)
    if not host.isprintable() or " " in host:
        raise UserError("has a space in its host's name", place=plain(named), fix=FORM)
    asked = parse_qs(parts.query, keep_blank_values=True)
    if further := sorted(asked.keys() - {"model"}):
        message = f"the address of {parts.netloc} holds {', '.join(further)} behind ?"
        raise UserError(message, fix=f"leave it out; a key is set in the environment: {KEY}")
    named_so = {name for name in (unquote(parts.fragment), *asked.get("model", ())) if name}
    if len(named_so) > 1:
        raise UserError(f"names two models, {' and '.join(sorted(named_so))}", place=named, fix=FORM)
    path = quote(parts.path.rstrip("/"), safe=SENT) or "/v1"
    return Address(f"{parts.scheme}://{parts.netloc}{path}", next(iter(named_so), ""))
