"""Images from an endpoint: `POST images/generations`, one image a call, as base64 in the answer."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from compress.endpoints.calls import Client, EndpointError
from compress.tasks import Observable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PATH = "images/generations"
PROMPT = "a red house by the sea"  # what an endpoint is tried on, where there is no other
UNKNOWN = (400, 422)  # how servers refuse an argument that they do not know
# Arguments that some servers refuse: which are left out, in the order in which that is tried.
LEFT_OUT = ((), ("seed",), ("response_format",), ("seed", "response_format"))
NO_SEED = "its server gives the same prompt and seed {}, so nothing is of the same noise on both sides"


@dataclass(frozen=True)
class ImageCalls:
    """How an endpoint is asked for images.

    size: WIDTHxHEIGHT, "" for the server's own. left_out: arguments that the server refuses.
    unseeded: why a seed decides no image; "": it does, or nobody looked. alike: whether a prompt has one image, whatever the seed.
    gave: height and width of the image that it was tried with, (0, 0): none.
    """

    client: Client
    model: str
    size: str = ""
    left_out: tuple[str, ...] = ()
    unseeded: str = ""
    alike: bool = False
    gave: tuple[int, int] = (0, 0)
    lacks: Mapping[Observable, str] = field(default_factory=dict)
    yields: frozenset[Observable] = frozenset({"images", "timings"})

    def body(self, prompt: str, seed: int) -> dict[str, Any]:
        """The arguments of a call."""
        every = {"model": self.model, "prompt": prompt, "n": 1, "response_format": "b64_json", "seed": seed}
        every |= {"size": self.size} if self.size else {}
        return {name: value for name, value in every.items() if name not in self.left_out}

    def image(self, prompt: str, seed: int) -> NDArray[np.uint8]:
        """An image, uint8 [height, width, 3].

        Raises:
            EndpointError: there is none that reads.
        """
        return _decoded(self.client, self.client.post(PATH, self.body(prompt, seed)).content)

    def timed(self, prompt: str, seed: int) -> float:
        """Seconds from the request to the last byte of the answer; it is made once."""
        return self.client.post(PATH, self.body(prompt, seed), again=False).seconds


def seed_of(seed: int, item: str) -> int:
    """An image's own seed, below 2³¹: it depends on the seed of all and on its item's id, and on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{item}".encode()).digest()[:4], "big") >> 1


def probe_images(client: Client, model: str, size: str, prompt: str, seed: int, *, seeded: bool) -> ImageCalls:
    """How an endpoint can be asked for images, found out by asking for one.

    Args:
        seeded: whether it matters what a seed does to the image, for which one or two more are asked for.

    Raises:
        EndpointError: it gives none, or an address in place of one.
    """
    import numpy as np

    calls, shown = _first(ImageCalls(client, model, size), prompt, seed)
    calls = replace(calls, gave=(shown.shape[0], shown.shape[1]))
    if not seeded:
        return calls
    same = np.array_equal(shown, calls.image(prompt, seed))
    alike = same and np.array_equal(shown, calls.image(prompt, seed ^ 1))
    if "seed" in calls.left_out:
        lacking = "any image, for it takes none"
    else:
        lacking = "two different images" if not same else "and another seed one image" if alike else ""
    return replace(calls, unseeded=lacking and NO_SEED.format(lacking), alike=alike)


def _first(calls: ImageCalls, prompt: str, seed: int) -> tuple[ImageCalls, NDArray[np.uint8]]:
    """The calls with the fewest arguments left out that the endpoint answers, and its image."""
    refused: EndpointError | None = None
    for left_out in LEFT_OUT:
        now = replace(calls, left_out=left_out)
        try:
            return now, now.image(prompt, seed)
        except EndpointError as error:
            refused = refused or error
            if error.status not in UNKNOWN:
                raise
    raise refused or AssertionError("there is a way that leaves out nothing")


def _decoded(client: Client, content: Any) -> NDArray[np.uint8]:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    rows = content.get("data") if isinstance(content, dict) else None
    row = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
    if not row.get("b64_json"):
        what = "the address of an image" if row.get("url") else "no image"
        message = f"answers /{PATH} with {what} where `b64_json` was asked for, and pare fetches from no other address"
        raise client.odd(message, "let the server answer with b64_json, or give folders of images")
    try:
        with Image.open(io.BytesIO(base64.b64decode(row["b64_json"], validate=False))) as opened:
            return np.asarray(opened.convert("RGB"), dtype=np.uint8)
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError) as error:
        message = f"answers /{PATH} with b64_json that is no image: {error}"
        raise client.odd(message) from error
