"""Which images a metric compares a side with, and by which features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compress.params import Params, Placed
from evaluation.preflight.paths import of_each_image, of_features, of_real_images


class AgainstReal(Params):
    """Which features the two sets are compared with each other by, and what the real set is."""

    features: Annotated[str, Placed(of_features)] = Field(
        "zoo://digits-clip", description="feature extractor: the zoo's CLIP, or a local folder or file"
    )
    resize: Literal["pil", "mlperf", "tf1"] = Field(
        "pil", description="pil: antialiased bicubic; mlperf and tf1 reproduce numbers published with those"
    )
    reference: Annotated[str, Placed(of_real_images)] = Field(
        "", description="the real set: a folder of images, or an .npz of mu and sigma; empty: the items' own images"
    )


class AgainstImages(AgainstReal):
    """As `AgainstReal`, for what mean and covariance do not suffice."""

    reference: Annotated[str, Placed(of_each_image)] = Field(
        "", description="the real set: a folder of images; empty: the items' own images"
    )
