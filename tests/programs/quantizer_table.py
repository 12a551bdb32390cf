"""What comes of each quantizer on each family, on tiny instances: the tables of docs/quantization.md.

A cell is tried as a user would: the plan of its recipe refuses it in one sentence, or its stages run, and what they leave is opened by stock
libraries in a process without pare and called. `tests/pipeline/test_quantizer_table.py` tries the cells, and writes the page anew when all of them
are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.engines.gguf.reading import read_model
from compress.engines.openvino.layers import layers
from compress.files.safetensors_headers import read_header
from compress.model import bit_widths
from compress.model.weight_files import loaded_files
from compress.quantization.linears import HEADS, ROUTERS, TABLES
from tests.families import NOT_QUANTIZED, TEXT
from tests.opened_alone import WRITTEN, Call, Job, called_here, first_call, open_alone, written_here
from tests.programs.family_table import TITLES, table
from tests.programs.family_table import problems as planned_problems
from tests.quantizing import DATA, TAUGHT, TEXTS, TOKENS, distance
from tests.reference.alone import called
from tests.stages import apply

PAGE = Path(__file__).parents[2] / "docs/quantization.md"
BEGIN, END = "<!-- cells: make slow -->", "<!-- /cells -->"
WORKS = "✓"
LANGUAGE = ("llama", *(name for name in TEXT if name not in NOT_QUANTIZED))
PIPELINES = ("sd", "sdxl", "sd3", "flux-deep", "pixart-alpha", "pixart-sigma", "sana")
ALIKE = 1e-4  # how far what stock libraries give may be from what pare measures, as a share of its size
# Where activations are rounded too: one that lies between two codes goes either way with the last bit of a sum, and layers amplify it.
ROUNDED = 0.1


@dataclass(frozen=True, eq=False)
class Way:
    """A row of a table: a stage, its parameters, what runs before it, and how far its outputs may be from the original's.

    near: as a share of the original's size; what has nothing to do with it is 1.4 away, and models with weights drawn at random, whose layers
    amplify what rounding changes, go up to half of that in 8 bits with their activations. parts: of a pipeline, by the row's word.
    """

    title: str
    stage: str
    near: float
    params: Mapping[str, Any] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    parts: str = ""

    @property
    def rounds(self) -> bool:
        """Whether activations are rounded when it runs; OpenVINO does so beside 8-bit weights, where a processor multiplies bytes."""
        return self.stage == "quantize.nncf" or self.title in ("int8", "int8 dynamic")

    @property
    def task(self) -> str:
        return "text_to_image" if self.parts else "text_generation"


ROUND = {"group_size": 32, "samples": 8}
TUNED = {"group_size": 32, "samples": 8, "length": 16, "batch": 4}
ENGINE = ("build.openvino",)
AUTOROUND, PACKED, SMALL = "quantize.autoround", "quantize.bitsandbytes", "quantize.torchao"
WRITING = (
    Way("GPTQ, 4 bits", "quantize.gptq", 0.7, {"bits": 4, **ROUND}),
    Way("GPTQ, 8 bits", "quantize.gptq", 0.06, {"bits": 8, **ROUND}),
    Way("signed gradients, 4 bits, compressed-tensors", AUTOROUND, 0.7, {"iters": 4, **TUNED}),
    Way("AWQ, 6 bits, compressed-tensors", AUTOROUND, 0.3, {"method": "awq", "bits": 6, **TUNED}),
    Way(
        "rounding, 8 bits, GPTQ's layout",
        AUTOROUND,
        0.06,
        {"method": "rtn", "bits": 8, "layout": "gptq", "group_size": 32},
    ),
    Way("rounding, 4 bits, AWQ's layout", AUTOROUND, 0.7, {"method": "rtn", "layout": "awq", "group_size": 32}),
    Way("distilled under 4 bits", "distill.quantized", 0.7, {"bits": 4, **TAUGHT}),
    Way("nf4", PACKED, 1.0, {"mode": "nf4", "double_quant": True}),
    Way("fp4", PACKED, 1.0, {"mode": "fp4"}),
    Way("int8", PACKED, 0.2, {"mode": "int8"}),
    Way("int8 weights", SMALL, 0.3, {"mode": "int8_weights"}),
    Way("int8 dynamic", SMALL, 0.3, {"mode": "int8_dynamic"}),
    Way("int8", "quantize.nncf", 0.9, {"samples": 4}, ENGINE),
    Way("int8 weights", "quantize.nncf", 0.3, {"mode": "int8_weights"}, ENGINE),
    Way("int4 weights", "quantize.nncf", 0.8, {"mode": "int4_weights", "group_size": 32}, ENGINE),
    Way("int8 weights", "build.gguf", 0.3, {"precision": "int8_weights"}),
    Way("int4 weights", "build.gguf", 0.8, {"precision": "int4_weights"}),
)
DENOISER, ENCODERS, DECODER = "denoiser", "text encoders", "VAE"
PARTS = (DENOISER, ENCODERS, DECODER)
DRAWING = (
    *(Way("int8 weights", SMALL, 0.3, {"mode": "int8_weights"}, parts=parts) for parts in PARTS),
    *(Way("int8 dynamic", SMALL, 0.3, {"mode": "int8_dynamic"}, parts=parts) for parts in PARTS),
    *(Way("int8", PACKED, 0.2, {"mode": "int8"}, parts=parts) for parts in PARTS),
    *(Way("int8 weights", "quantize.nncf", 0.3, {"mode": "int8_weights"}, ENGINE, parts) for parts in PARTS),
    Way("int8 hybrid", "quantize.nncf", 0.9, {"mode": "int8_hybrid", "samples": 2}, ENGINE, DENOISER),
    Way("int8", "quantize.nncf", 0.9, {"mode": "int8", "samples": 2}, ENGINE, DENOISER),
)
WAYS = (*WRITING, *DRAWING)
FAMILIES = {"text_generation": LANGUAGE, "text_to_image": PIPELINES}


@dataclass(frozen=True)
class Made:
    """What a way left of a model, and of which components."""

    way: Way
    artifact: Artifact
    names: tuple[str, ...]


def names_of(way: Way, source: Artifact) -> tuple[str, ...]:
    """The components that a way works on."""
    if not way.parts:
        return (LANGUAGE_MODEL,)
    fits = {
        DENOISER: lambda n: n == source.main,
        ENCODERS: lambda n: n.startswith("text_encoder"),
        DECODER: lambda n: n == "vae",
    }
    return tuple(name for name in source.working if fits[way.parts](name))


def asked(way: Way, source: Artifact) -> list[dict[str, dict[str, Any]]]:
    """A way as steps of a recipe."""
    named = {"components": list(names_of(way, source))} if way.parts else {}
    return [*({stage: named} for stage in way.before), {way.stage: {**way.params, **named}}]


def tried(ways: Iterable[Way], source: Artifact, folder: Path) -> dict[Way, str]:
    """What comes of each way: how much of the weights it reaches, "✓" where that is all, or in one sentence why it is refused.

    Raises:
        AssertionError: what is left is not what pare measures, or far from the original, or the refusal is none.
    """
    found, made = {}, []
    for number, way in enumerate(ways):
        place = folder / str(number)
        place.mkdir(parents=True)
        why = refused(way, source, place)
        found[way] = why
        if not why:
            made.append(run(way, source, place))
    if made:
        compare(made, source, folder / "alone")
    return found | {one.way: told(reached(source, one)) for one in made}


def refused(way: Way, source: Artifact, folder: Path) -> str:
    """Why the plan refuses a way, or "": one sentence that says what, and what to do."""
    train = folder / "train.txt"
    train.write_text("\n\n".join(TEXTS))
    data = {"calibration": str(train)} if way.task == "text_generation" else {"calibration": "zoo://digits/validation"}
    why = planned_problems(
        source, {**data, "train": str(train)} if "distill" in way.stage else data, folder, asked(way, source)
    )
    why = why.removeprefix(f"{way.stage}: ")
    assert ". " not in why
    return why


def run(way: Way, source: Artifact, folder: Path) -> Made:
    made = source
    for number, step in enumerate(asked(way, source)):
        ((stage, params),) = step.items()
        more: dict[str, Any] = {"data": DATA} if way.task == "text_generation" else {}
        if stage.startswith("distill."):
            more["inputs"] = {"teacher": source}
        made, _ = apply(stage, made, folder / f"made-{number}", **more, **params)
    return Made(way, made, names_of(way, source))


def compare(made: Sequence[Made], source: Artifact, out: Path) -> None:
    """Open all of them alone: what they give is what pare measures, and near what the original gives."""
    calls: dict[str, Call] = {}
    for name in {name for one in made for name in one.names}:
        calls[name] = {"input_ids": TOKENS} if name == LANGUAGE_MODEL else first_call(source, name)
    parts = [(one, name) for one in made for name in one.names]
    lengths = {name: WRITTEN if name == LANGUAGE_MODEL else 0 for name in calls}
    alone = open_alone([Job(one.artifact, name, calls[name], written=lengths[name]) for one, name in parts], out)
    for (one, name), given in zip(parts, alone, strict=True):
        what, artifact = f"{one.way.stage} {one.way.title} {name}", one.artifact
        measured = runnable(artifact, name)
        apart = distance(measured(calls[name]), given["found"])
        assert apart < (ROUNDED if one.way.rounds else ALIKE), f"{what}: {apart:.2g} from what pare measures"
        far = distance(called_here(source, name, calls[name]), given["found"])
        assert 0 < far < one.way.near, f"{what}: {far:.3f} away"
        if name == LANGUAGE_MODEL and artifact.components[name].format != "gguf":
            assert given["written"].tolist() == written_here(artifact, TOKENS[0].tolist()), what


def runnable(artifact: Artifact, name: str) -> Callable[[Call], torch.Tensor]:
    """What pare runs a component with: of a GGUF file, whose llama.cpp is not installed everywhere, what it compares with torch."""
    if artifact.components[name].format != "gguf":
        return partial(called_here, artifact, name)
    model = read_model(artifact.folder(name), artifact.components[name].kind)
    return partial(called, model, artifact.components[name].kind)


def reached(source: Artifact, made: Made) -> float:
    """The share of the weights of layers and convolutions that are narrow now."""
    narrow = whole = 0.0
    for name in made.names:
        held = bit_widths.shares(made.artifact, name)
        share = sum(share for kind, share in held.items() if kind not in bit_widths.WIDE)
        folder, total = made.artifact.folder(name), sum(size(source, name, tables=True))
        if made.artifact.components[name].format == "torch":
            narrow += share * total
            whole += sum(size(source, name, tables=False))
            continue
        everything = not layers(folder) if made.artifact.components[name].format == "openvino" else share > 0.97
        narrow += total if everything else share * total
        whole += total
    return narrow / whole


def size(source: Artifact, name: str, *, tables: bool) -> Iterable[int]:
    """How many weights each matrix and each kernel of a component has; those of embeddings, heads and routers only where they are asked for."""
    for file in loaded_files(source, name):
        for tensor, stored in read_header(file).tensors.items():
            module = tensor.removesuffix(".weight")
            last = module.rpartition(".")[2]
            if len(stored.shape) > 1 and (tables or not (last in (*TABLES, *ROUTERS) or module in HEADS)):
                yield stored.count


def told(share: float) -> str:
    return WORKS if share > 0.995 else f"{share:.0%}"


def pages(cells: Mapping[tuple[str, Way], str]) -> str:
    """Both tables, each refusal by its number in the list behind them."""
    numbers = {why: n for n, why in enumerate(dict.fromkeys(cell for cell in cells.values() if is_refusal(cell)), 1)}
    parts = []
    for task, families in FAMILIES.items():
        rows = []
        for way in (way for way in WAYS if way.task == task):
            found = [cells[family, way] for family in families]
            rows.append((label(way), *(f"({numbers[cell]})" if is_refusal(cell) else cell for cell in found)))
        parts.append(table(["", *(TITLES.get(family, family) for family in families)], rows))
    return "\n\n".join([*parts, "\n".join(f"{number}. {why}" for why, number in numbers.items())])


def is_refusal(cell: str) -> bool:
    return cell != WORKS and not cell.endswith("%")


def label(way: Way) -> str:
    return f"`{way.stage}` {way.title}" + (f": {way.parts}" if way.parts else "")


def read(page: str) -> dict[tuple[str, str], str]:
    """By a column's heading and a row's label what the page says, refusals as sentences."""
    lines = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    reasons = dict(line.split(". ", 1) for line in lines if line[:1].isdigit())
    found, head = dict[tuple[str, str], str](), list[str]()
    for line in lines:
        row = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("|  |"):
            head = row[1:]
        elif line.startswith("| `"):
            found |= {
                (title, row[0]): reasons.get(cell.strip("()"), cell) for title, cell in zip(head, row[1:], strict=True)
            }
    return found
