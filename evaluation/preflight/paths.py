"""What metrics name on disk, judged before anything runs, from file names and JSON alone: feature extractors and real images."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile, ZipFile

from compress.artifact import read_json
from compress.data.images import SUFFIXES
from compress.errors import UserError
from compress.files.user_paths import expanded
from compress.params import Fault
from compress.sources.models import find_folder
from evaluation.preflight.image_folders import files_of

WEIGHTS = (".safetensors", ".pth", ".pt")
TYPES = ("clip", "dinov2", "dinov2_with_registers")  # that give features here, as a config.json calls them
ZOO = "zoo://digits-clip for images of the zoo's digits alone"
FIX = f"give a CLIP or DINOv2 folder saved by transformers, or FID's file of Inception weights; {ZOO}"
CLIP_FIX = f"give a CLIP folder saved by transformers, its tokenizer with it; {ZOO}"
# How many numbers each makes of an image: the field of its config, and what transformers takes where that is lacking.
WIDTHS = {"clip": ("projection_dim", 512), **dict.fromkeys(TYPES[1:], ("hidden_size", 768))}
STATISTICS = ".npz"  # how a file of mean and covariance ends
INCEPTION = 2048  # of FID's file of weights
TOKENIZERS = ("tokenizer.json", "vocab.json")


def of_features(reference: str) -> Fault | None:
    """Whether a feature extractor lies there."""
    return _of_network(reference, TYPES, FIX)


def width_of(reference: str) -> int | None:
    """How many numbers a feature extractor makes of an image; None where its files do not tell."""
    if of_features(reference):
        return None
    path = find_folder(reference, Path())
    if path.is_file():
        return INCEPTION
    config = read_json(path / "config.json")
    name, usual = WIDTHS[str(config["model_type"])]
    found = config.get(name, usual)
    return found if isinstance(found, int) else None


def of_clip(reference: str) -> Fault | None:
    """Whether a CLIP model lies there that reads captions too."""
    if found := _of_network(reference, ("clip",), CLIP_FIX):
        return found
    folder = find_folder(reference, Path())
    if not folder.is_dir():
        return Fault(f"is a file, and captions need a whole CLIP model: {reference}", CLIP_FIX)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return Fault(f"holds no tokenizer, which captions need: {reference}", CLIP_FIX)
    return None


def of_layers(reference: str) -> Fault | None:
    """Whether a network lies there whose layers LPIPS compares: AlexNet's own file, or a feature extractor."""
    if not reference.endswith(".safetensors"):
        return of_features(reference)
    path = expanded(reference)
    return None if path.is_file() else Fault(f"there is no such file: {reference}", _looked_at(path))


def of_real_images(reference: str) -> Fault | None:
    """Whether real images, or statistics of theirs, lie there; "" names none."""
    path = expanded(reference)
    if not reference:
        return None
    if path.suffix == STATISTICS and path.is_file():
        return _of_statistics(path)
    if not path.exists():
        message = f"there is no such folder or file: {reference}"
        return Fault(message, _looked_at(path))
    if path.is_file():
        message = f"is no .npz of mu and sigma: {reference}"
        return Fault(message, "`pare reference` writes one; or give a folder of images")
    if not files_of(path):
        return Fault(f"holds no images: {reference}", f"files ending in {', '.join(SUFFIXES)}")
    return None


def of_each_image(reference: str) -> Fault | None:
    """As `of_real_images`, for a metric that mean and covariance do not suffice."""
    found = of_real_images(reference)
    if found or not reference.endswith(STATISTICS) or not expanded(reference).is_file():
        return found
    message = f"this needs the features of each real image, and {reference} holds their mean and covariance"
    return Fault(message, "give a folder of images, or measure fid with it")


def _of_statistics(path: Path) -> Fault | None:
    """Whether an archive lists mu and sigma."""
    fix = "`pare reference` writes one; or give a folder of images"
    try:
        with ZipFile(path) as archive:
            held = archive.namelist()
    except (OSError, BadZipFile) as error:
        return Fault(f"is no .npz of mu and sigma: {path} ({error})", fix)
    lacking = [name for name in ("mu", "sigma") if f"{name}.npy" not in held]
    message = f"holds no {' and no '.join(lacking)}: {path} ({', '.join(held[:4]) or 'nothing'})"
    return Fault(message, fix) if lacking else None


def _looked_at(path: Path) -> str:
    """What to do about a path with nothing there; of a recipe it is whole already, and elsewhere it starts where one is."""
    return f"check the path: {path.absolute()}"


def _of_network(reference: str, types: tuple[str, ...], fix: str) -> Fault | None:
    try:
        path = find_folder(reference, Path())
        if path.is_file():
            return None if path.suffix in WEIGHTS else Fault(f"is no file of weights: {reference}", fix)
        config = path / "config.json"
        if not config.is_file():
            return Fault(f"no feature extractor lies there: {reference}", fix)
        kind = read_json(config).get("model_type")
    except UserError as error:  # the zoo has no such model, or its JSON does not read
        return Fault(error.problems[0].message, error.problems[0].fix or fix)
    return (
        None if kind in types else Fault(f"is a model of type {kind}, which gives no features here: {reference}", fix)
    )
