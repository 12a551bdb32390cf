"""Parts a and d: recipes that say `device: cuda`, whether an image is the same wherever it is generated, and a training that is killed."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.gpu import sections
from tests.gpu.sections import Report, Section

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compress.artifact import Artifact
    from compress.events import Emit
    from compress.machine.devices import Opening
    from evaluation.comparison import Comparison

ROOT = Path(__file__).parents[2]
LEVELS = 2  # of 255, by which an image may differ that is generated in whole float32 on another device
NATS = 1e-4  # of the logits' size, likewise
Changed = Callable[[dict[str, Any]], None]
# What is otherwise in a recipe where all is tiny: in a stage, and in what is measured.
TINY_STAGES: Mapping[str, Mapping[str, object]] = {
    "prune.depth": {"ratio": 0.5, "samples": 2},
    "distill.features": {"steps": 2, "prompts": 8, "denoising_steps": 4, "warmup": 1},
    "distill.steps": {"updates": 2, "captions": 4, "batch": 2, "warmup": 1},
    "distill.logits": {"steps": 2, "tokens": 16, "documents": 8, "batch": 2, "warmup": 1},
}
TINY_EVALUATION = {"samples": 8, "stage_samples": 0, "timing_blocks": 5}
TINY_METRICS = ("clip_score", "latency", "perplexity", "throughput", "size")


@contextlib.contextmanager
def model(name: str, tiny: bool) -> Iterator[Artifact]:
    """A model of the zoo, or a tiny one of the same pipeline."""
    from compress.model.describing import describe

    with tempfile.TemporaryDirectory() as folder:
        yield describe(_model(name, tiny, Path(folder)))


def _model(name: str, tiny: bool, folder: Path) -> Path:
    from compress.zoo import zoo_model
    from tests.families import tiny_image
    from tests.tiny import tiny_diffusion, tiny_llama

    makers: Mapping[str, Callable[[Path], Path]] = {
        "digits-diffusion": tiny_diffusion,
        "docs-llama": tiny_llama,
        "digits-dit": partial(tiny_image, family="flux"),
    }
    return makers[name](folder) if tiny else zoo_model(name)


# ---------------------------------------------------------------- the same on either device


def same_noise(tiny: bool, report: Report) -> None:
    """Images of zoo://digits-diffusion and logits of zoo://docs-llama, on the processor and on the GPU.

    Raises:
        AssertionError: they differ by more than is stated.
    """
    from compress.machine.devices import CPU, Opening, settled

    there = settled("auto" if tiny else "cuda")
    apart = [
        name for name, found in _compared(tiny, report, Opening("float32", CPU), Opening("float32", there)) if not found
    ]
    assert not apart, f"the devices do not agree: {', '.join(apart)}"


def _compared(tiny: bool, report: Report, here: Opening, there: Opening) -> Iterator[tuple[str, bool]]:
    with model("digits-diffusion", tiny) as generator:
        yield "noise", _noise(generator, report, here, there)
        with whole_float32():
            yield "images", _images("in whole float32", generator, tiny, report, (here, there), LEVELS)
        _images("as torch computes float32", generator, tiny, report, (here, there))
        yield "the lean call", _lean(generator, tiny, report, there)
    with model("docs-llama", tiny) as writer, whole_float32():
        yield "logits", _logits(writer, report, here, there)


@contextlib.contextmanager
def whole_float32() -> Iterator[None]:
    """Within: neither products nor convolutions of float32 are rounded to TF32 on a GPU."""
    import torch

    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def _noise(artifact: Artifact, report: Report, here: Opening, there: Opening) -> bool:
    """What an image begins with, to the bit."""
    import torch

    from compress.algorithms.tensors import to_host
    from compress.opening.text_to_image import TextToImage

    tasks = [TextToImage(artifact, opening) for opening in (here, there)]
    one, other = (to_host(task.first_step(task.examples, 0, 2).begun) for task in tasks)
    same = torch.equal(one, other)
    report("noise of three images", {"equal to the bit": same})
    return same


def _images(
    how: str, artifact: Artifact, tiny: bool, report: Report, openings: tuple[Opening, Opening], most: int | None = None
) -> bool:
    one, other = (_generated(artifact, opening, tiny) for opening in openings)
    return _reported(f"images {how}", one, other, report, most)


def _lean(artifact: Artifact, tiny: bool, report: Report, there: Opening) -> bool:
    stock, lean = (_generated(one, there, tiny) for one in (artifact, artifact.calling_lean()))
    return _reported("images of the lean call and the stock one, both there", stock, lean, report, 0)


def _generated(artifact: Artifact, opening: Opening, tiny: bool) -> NDArray[np.uint8]:
    from compress.opening import open_images
    from compress.sources.data import open_data

    items = open_data("zoo://digits/test", Path()).first(2 if tiny else 8)
    return open_images(artifact, opening).images(items, 0, num_inference_steps=2 if tiny else 20, guidance_scale=3.0)[0]


def _reported(name: str, one: NDArray[np.uint8], other: NDArray[np.uint8], report: Report, most: int | None) -> bool:
    import numpy as np

    away = np.abs(one.astype(np.int64) - other.astype(np.int64))
    agree = most is None or int(away.max()) <= most
    values: dict[str, object] = {
        "images": len(one),
        "largest difference of 255": int(away.max()),
        "mean": float(away.mean()),
    }
    values["values that differ"] = f"{(away > 0).mean():.2%}"
    report(name, values if most is None else {**values, "allowed": most, "agree": agree})
    return agree


def _logits(artifact: Artifact, report: Report, here: Opening, there: Opening) -> bool:
    import torch

    from compress.algorithms.tensors import to_host
    from compress.opening import open_language
    from compress.sources.data import open_data

    texts = [item.text[:200] for item in open_data("zoo://docstrings/test", Path()).first(4)]
    tasks = [open_language(artifact, opening) for opening in (here, there)]
    documents = [tasks[0].encode(text) for text in texts]
    message = [[to_host(task.logits([one])[0], torch.float64) for one in documents] for task in tasks]
    one, other = (torch.cat(rows) for rows in message)
    away, top = float((one - other).norm() / one.norm()), float((one.argmax(-1) == other.argmax(-1)).double().mean())
    agree = away <= NATS
    report(
        "logits in whole float32",
        {
            "tokens": len(one),
            "relative difference": away,
            "same first token": f"{top:.2%}",
            "allowed": NATS,
            "agree": agree,
        },
    )
    return agree


# ---------------------------------------------------------------- recipes


def recipe(name: str, file: str, change: Changed | None = None) -> Callable[[bool, Report], None]:
    """A section that runs a recipe on the GPU; its reports go beside the section's rows."""
    return partial(_run_recipe, name, ROOT / "recipes" / file, change)


def _run_recipe(name: str, file: Path, change: Changed | None, tiny: bool, report: Report) -> None:
    import yaml

    body = yaml.safe_load(file.read_text())
    if change:
        change(body)
    run_body(name, body, tiny, report)


def run_body(name: str, body: dict[str, Any], tiny: bool, report: Report) -> None:
    """Run what a recipe says; its reports go beside the section's rows."""
    import yaml

    import compress

    body["device"] = "auto" if tiny else "cuda"
    out = sections.OUT / "gpu" / name
    out.mkdir(parents=True, exist_ok=True)
    if tiny:
        shrink(body, out)
    (out / "recipe.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    began = time.monotonic()
    found = compress.run(out / "recipe.yaml", out=out, emit=_stages(report))
    tell(found, time.monotonic() - began, report)


def shrink(body: dict[str, Any], folder: Path) -> None:
    """A recipe on a tiny model, with few updates and few metrics."""
    without_graphs(body["stages"])
    body["model"] = str(_model(body["model"].removeprefix("zoo://"), True, folder / "tiny").absolute())
    for name in ("train", "calibration"):  # the zoo's own are made of all the docstrings that are installed
        if body["data"].get(name, "").startswith("zoo://docstrings"):
            body["data"][name] = str(texts(folder / f"{name}.txt").absolute())
    for step in body["stages"]:
        for stage in step.keys() & TINY_STAGES.keys():
            step[stage].update(TINY_STAGES[stage])
    measured = body["evaluate"]
    measured |= TINY_EVALUATION | {"metrics": [name for name in measured["metrics"] if name in TINY_METRICS]}
    if "steps" in measured["baseline"]:
        measured["baseline"]["steps"] = 2
    body["gates"] = {name: gate for name, gate in body["gates"].items() if name in TINY_METRICS}


def without_graphs(steps: list[dict[str, Any]]) -> None:
    """CUDA graphs are a GPU's: without them, the step in front leaves what theirs would."""
    for place in reversed([n for n, step in enumerate(steps) if "accelerate.cuda_graph" in step]):
        name = steps.pop(place)["accelerate.cuda_graph"].get("id", "")
        before = next(iter(steps[place - 1].values()))
        before |= {"id": name} if name else {}


def texts(file: Path) -> Path:
    file.write_text("\n\n".join(f"The {i}th {file.stem} value of the array, and its axis." for i in range(200)))
    return file


def _stages(report: Report) -> Emit:
    """Each stage as a row when it ends; training says how its loss went."""
    from compress.events import Event

    message: dict[str, str] = {}

    def recorded(event: Event) -> None:
        for row in event.facts.get("tried", ()) if event.kind == "note" else ():
            report(f"{event.facts['component']}: {row['engine']}", {key: row[key] for key in row if key != "engine"})
        if event.kind == "note" and event.facts.get("loss"):
            message[event.what] = event.message
        if event.kind in ("finished", "cached"):
            seconds = {"seconds": event.facts["seconds"]} if "seconds" in event.facts else {"seconds": event.kind}
            report(f"stage {event.what}", {**seconds, "said": message.get(event.what, "")})

    return recorded


def tell(found: Comparison, seconds: float, report: Report) -> None:
    from evaluation.report import formatting

    for row in found.rows:
        scores = {name: formatting.score(getattr(row, name), row.unit) for name in ("baseline", "candidate")}
        report(
            row.title,
            {
                **scores,
                "contrast": formatting.contrast(row),
                "verdict": formatting.mark(row),
                "why": formatting.reason(row),
            },
        )
    units = {row.metric: row for row in found.rows}
    for control in found.controls:
        for one in control.rows:
            row = units[one.metric]
            scores = {
                "candidate": formatting.score(one.score, row.unit),
                "contrast": formatting.contrast_of(row, one.contrast),
                "candidate beside it": formatting.contrast_of(row, one.over),
            }
            report(f"control {control.stage}: {one.title}", {**scores, "verdict": one.verdict.status})
    report("whole", {"seconds": round(seconds, 1), "verdict": found.status, "why": formatting.machine(found)})


# ---------------------------------------------------------------- killed, and resumed

RESUMED = """\
schema: 1
name: resumed
model: {model}
device: {device}
data: {{train: texts.txt}}
stages:
  - distill.logits: {{steps: {steps}, tokens: {tokens}, batch: 4, checkpoint_seconds: {seconds}}}
"""


def resumed(tiny: bool, report: Report) -> None:
    """A training on the GPU that is killed (SIGKILL) behind a checkpoint goes on from there, and ends where an undisturbed one does.

    Raises:
        AssertionError: it began anew, or it was over before it was killed.
    """
    from compress.events import Event

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts(folder / "texts.txt")
        steps, device = (24, "auto") if tiny else (200, "cuda")
        with model("docs-llama", tiny) as artifact:
            given = {"model": artifact.path, "device": device, "steps": steps, "tokens": 16 if tiny else 64}
            (folder / "recipe.yaml").write_text(RESUMED.format(**given, seconds=0.01 if tiny else 0.5))
            killed = _train_until_killed(folder, steps // 3)
            report("killed", {"behind step": killed, "of": steps})
            recorded: list[Event] = []
            ends = {
                cache: _trained(folder, cache, recorded if cache == "killed" else [])
                for cache in ("killed", "undisturbed")
            }
        goes_on = next(filter(None, (re.search(r"goes on at step (\d+)", event.message) for event in recorded)), None)
        at = int(goes_on[1]) if goes_on else 0
        (one, end), (other, undisturbed) = ends["killed"], ends["undisturbed"]
        report("resumed", {"at step": at, "last loss": end, "undisturbed": undisturbed, "same bits": one == other})
        assert 0 < at < steps, "the training did not go on from a checkpoint"


def _train_until_killed(folder: Path, steps: int) -> int:
    """Run it in a process of its own until there is a checkpoint and `steps` more steps are made. Returns how many it had made."""
    events = folder / "out" / "events.jsonl"
    command = [sys.executable, "-m", "compress.cli", "run", str(folder / "recipe.yaml")]
    command += ["--cache", str(folder / "killed"), "--out", str(events.parent)]
    made = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            made = events.read_text().count(" training") if events.exists() else 0
            if made > steps and any((folder / "killed").rglob("state.json")):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        _, message = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"the run was over before it was killed: {message[-500:]}"
    return made


def _trained(folder: Path, cache: str, recorded: list[Any]) -> tuple[str, float]:
    """The digest of what the recipe leaves, and the last loss."""
    import compress
    from compress.execution.execute import execute
    from compress.store.cache import Cache

    store = Cache(folder / cache)
    done = execute(compress.plan(folder / "recipe.yaml", cache=store.root), store, recorded.append)[-1]
    return done.artifact.digest, float(done.facts["loss"][-1][1])


# ---------------------------------------------------------------- the parts


STARTED = (
    "cold_start",
    "peak_memory",
    "device_memory",
    "device_time",
)  # by fresh processes, which take ten seconds each where imports are slow


def in_one_process(body: dict[str, Any]) -> None:
    """Without what is measured in fresh processes, and without each stage's own share; in fewer blocks. The gates are the recipe's."""
    measured = body["evaluate"]
    measured["metrics"] = [name for name in measured["metrics"] if name not in STARTED]
    measured |= {"stage_samples": 0, "timing_blocks": 12}
    if "perplexity" in measured["metrics"]:
        measured["continuations"] = 16


def without_engines(body: dict[str, Any]) -> None:
    """What trains and generates on a GPU of a recipe that ends in engines for processors."""
    in_one_process(body)
    body["stages"] = [step for step in body["stages"] if not any(name.startswith("build.") for name in step)]


def started(tiny: bool, report: Report) -> None:
    """The memory of a GPU that fresh processes take with zoo://docs-llama in either number type, their cold starts, and how much of a call
    the GPU is at work."""
    from compress.machine.devices import Opening, settled
    from evaluation.observe.cold_starts import start
    from evaluation.observe.collect import Viewpoint

    device = settled("auto" if tiny else "cuda")
    with model("docs-llama", tiny) as artifact:
        for dtype in ("float32",) if tiny else ("float32", "bfloat16"):
            found = start(Viewpoint(artifact, Opening(dtype, device), {}, (), "", 0, 1))
            mb = {"allocated MB": found.device_bytes / 1e6, "reserved MB": found.reserved_bytes / 1e6}
            mb |= {"resident MB": found.peak_bytes / 1e6, "cold start s": found.seconds}
            report(
                dtype,
                {**mb, "call ms": 1e3 * found.call_seconds, "of which the GPU works ms": 1e3 * found.device_seconds},
            )


PARTS = {
    "a": (
        Section("same-noise", 40, same_noise),
        Section("gpu-image", 200, recipe("gpu-image", "gpu/image.yaml", in_one_process)),
    ),
    "d": (
        Section("gpu-text", 130, recipe("gpu-text", "gpu/text.yaml", in_one_process)),
        Section("resumed", 100, resumed),
    ),
    "e": (Section("ladder", 220, recipe("ladder", "image/ladder.yaml")),),
    "j": (
        Section("started", 90, started),
        Section("dit", 150, recipe("dit", "image/dit-few-steps.yaml", without_engines)),
    ),
}
