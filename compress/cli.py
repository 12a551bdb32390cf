"""`pare`: parse, call one function of `compress.api`, print. Nothing else lives here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.endpoints.address import TIMEOUT
from compress.execution.executors import LOCAL
from compress.exits import exit_code, unread
from compress.machine.deferred import deferred
from compress.machine.devices import CPU
from compress.machine.quota import keep_to_quota

if TYPE_CHECKING:
    from compress.events import Emit
    from evaluation.comparison import Comparison

app = typer.Typer(
    name="pare",
    help="Pare a text or image-generation model down to its Pareto front, with the evidence of what it cost.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeFile = Annotated[Path, typer.Argument(help="recipe YAML", metavar="RECIPE")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override, e.g. stages.0.ratio=0.3 (repeatable)")]
CacheDir = Annotated[Path | None, typer.Option("--cache", help="cache folder; default PARE_CACHE, else the XDG cache")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON value for machines")]
Device = Annotated[
    str | None, typer.Option("--device", help="where models run, as --set device=…: cpu, cuda, cuda:1, mps or auto")
]
Out = Annotated[Path | None, typer.Option("--out", help="folder of result.json and the reports; default runs/NAME")]


@app.command()
def check(
    recipe: RecipeFile,
    set_: Set = None,
    device: Device = None,
    cache: CacheDir = None,
    pin: Annotated[bool, typer.Option("--pin", help="write the commit that a floating hub revision names")] = False,
    as_json: Json = False,
) -> None:
    """Read a recipe and see whether it can work; prints every problem at once."""
    deferred("numpy")
    from compress import api
    from compress.planning.show import checked_dict, checked_text

    if pin:
        from compress.commands.pin import pin as pinned

        for reference in pinned(recipe):
            print(f"{recipe}: pinned {reference}", file=sys.stderr)  # standard output may be promised to one JSON value
    plans = api.plan_all(recipe, _overrides(set_, device), cache=cache)
    for warning in dict.fromkeys(message for found in plans for message in found.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        _print_json([checked_dict(found) for found in plans])
        return
    for found in plans:
        print(checked_text(found.recipe))


@app.command()
def init(
    model: Annotated[str, typer.Argument(help="model folder, zoo://NAME, hf://org/name, or FILE.safetensors::CONFIG")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="train=…, calibration=…, evaluate=…, or a folder with a part for each"),
    ] = None,
    goal: Annotated[str, typer.Option(help="faster or smaller")] = "faster",
    features: Annotated[str, typer.Option(help="folder of a CLIP model that judges images")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="the recipe to write; default NAME.yaml here")] = None,
    cache: CacheDir = None,
) -> None:
    """Write a first recipe for a model: what its family, its data and this machine allow, and why."""
    from compress.commands.init import init as write
    from compress.commands.init import shown
    from compress.store.cache import open_cache

    print(shown(*write(model, data or (), goal, features, out, open_cache(cache))))


@app.command()
def plan(
    recipe: RecipeFile,
    set_: Set = None,
    device: Device = None,
    gpu: Annotated[
        str | None,
        typer.Option("--for", help="say what each stage is worth on a GPU: H100, RTX 4090, T4, SM89, … or here"),
    ] = None,
    cache: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Show what would run, what is cached, and the disk, memory and time it takes."""
    from compress import api
    from compress.planning.hardware import as_if, fits_dict, fits_text
    from compress.planning.show import plan_dict, plan_text

    with as_if(gpu) as card:
        plans = api.plan_all(recipe, _overrides(set_, device), cache=cache)
        if as_json:
            _print_json([plan_dict(p) | ({"for": fits_dict(card, p)} if card else {}) for p in plans])
            return
        for found in plans:
            print("\n".join((plan_text(found), *([fits_text(card, found)] if card else []))))


@app.command()
def run(
    recipe: RecipeFile,
    set_: Set = None,
    device: Device = None,
    cache: CacheDir = None,
    out: Out = None,
    max_size: Annotated[str, typer.Option("--max-size", help="shrink the cache to this afterwards, e.g. 20GB")] = "",
    executor: Annotated[
        str, typer.Option(help="who runs the stages: the name of a file in compress/executors")
    ] = LOCAL,
    save: Annotated[
        Path | None, typer.Option("--save", help="copy the candidate whole to this new folder, to keep")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe: its stages, then the comparison with the baseline. Exit 0 pass, 1 fail, 4 inconclusive."""
    from compress import api
    from compress.recipe.options import read_bytes
    from compress.store.cache import open_cache

    limit = read_bytes(max_size) if max_size else None
    with _listening(as_json) as emit:
        comparisons = api.run_all(
            recipe, _overrides(set_, device), cache=cache, out=out, emit=emit, executor=executor, save=save
        )
    if limit is not None:
        kept = frozenset(row["key"] for c in comparisons for row in c.stages)
        open_cache(cache).evict(limit, kept)
    _finish(comparisons, as_json)


@app.command("eval")
def evaluate(
    candidate: Annotated[
        str, typer.Argument(help="model folder, artifact, zoo://NAME, folder of images, or http://HOST:PORT/v1#MODEL")
    ],
    baseline: Annotated[str, typer.Argument(help="what to compare it with: any of these")],
    metrics: Annotated[
        str | None,
        typer.Option(help="comma-separated; `pare list` shows them", show_default="latency,size; of endpoints latency"),
    ] = None,
    data: Annotated[str, typer.Option(help="evaluation data, for quality metrics")] = "",
    samples: Annotated[int, typer.Option(min=2, help="prompts, documents or images to measure quality on")] = 256,
    features: Annotated[str, typer.Option(help="feature extractor of all metrics that have one")] = "",
    reference: Annotated[str, typer.Option(help="real images, of all metrics that have a reference")] = "",
    gate: Annotated[list[str] | None, typer.Option(help="e.g. kid.worse_by=0.002 (repeatable)")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a metric's parameter, e.g. fid.features=clip/")
    ] = None,
    device: Annotated[str, typer.Option(help="where models run: cpu, cuda, cuda:1, mps or auto")] = CPU,
    trust: Annotated[
        bool, typer.Option("--trust-remote-code", help="let Python code in the models' own folders run")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds that an endpoint may be silent")] = TIMEOUT,
    cache: CacheDir = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Compare any two models, endpoints or folders of images: quality on the same prompts and noise, speed interleaved."""
    from compress import api
    from compress.endpoints.address import is_address
    from compress.recipe.options import read_gates, read_metrics
    from compress.recipe.values import EvalSpec

    usual = "latency" if is_address(candidate) or is_address(baseline) else "latency,size"
    asked, gates = read_metrics(usual if metrics is None else metrics, set_ or ()), read_gates(gate or ())
    spec = EvalSpec.model_validate({"samples": samples, "continuations": samples})  # continued are as many as scored
    with _listening(as_json) as emit:
        comparison = api.evaluate(
            candidate,
            baseline,
            metrics=asked,
            gates=gates,
            data=data,
            spec=spec,
            features=features,
            reference=reference,
            device=device,
            trust_remote_code=trust,
            timeout=timeout,
            cache=cache,
            out=out,
            emit=emit,
        )
    _finish((comparison,), as_json)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="result.json of the reference, or its folder")],
    new: Annotated[Path, typer.Argument(help="result.json of the run to judge, or its folder")],
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="compare only each run's ratios to its own baseline")
    ] = False,
    tolerance: Annotated[str, typer.Option(help="by how much a speed, a size or a memory may be worse")] = "10%",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Compare one run's candidate with another's. Exit 0 pass, 1 fail, 4 inconclusive."""
    from compress import api

    _finish((api.compare(old, new, across_machines=across_machines, tolerance=tolerance, out=out),), as_json)


@app.command()
def report(
    places: Annotated[list[Path], typer.Argument(metavar="DIR...", help="folders of runs, or folders of such folders")],
    markdown: Annotated[bool, typer.Option("--markdown", help="print a Markdown table")] = False,
    as_json: Json = False,
) -> None:
    """Tabulate many runs."""
    from compress import api
    from evaluation.report import runs_table

    with _listening(as_json) as emit:
        found = api.report(places, emit=emit)
    if as_json:
        _print_json(runs_table.to_dicts(found))
    elif markdown:
        print(runs_table.markdown(found), end="")
    else:
        runs_table.show(found)


@app.command()
def reference(
    source: Annotated[str, typer.Argument(help="real images: a folder, or data such as zoo://digits/test")],
    out: Annotated[Path, typer.Option("--out", help="the .npz to write, with mu and sigma")],
    features: Annotated[
        str, typer.Option(help="CLIP or DINOv2 folder, Inception weights, or the zoo's")
    ] = "zoo://digits-clip",
    resize: Annotated[str, typer.Option(help="pil, mlperf or tf1")] = "pil",
    samples: Annotated[int, typer.Option(min=0, help="of the first images; 0: of all")] = 0,
) -> None:
    """Keep the statistics of real images' features, for `fid: {reference: FILE}`."""
    from compress import api

    with _listening(as_json=False) as emit:
        count = api.reference(source, features, out, resize=resize, count=samples, emit=emit)
    print(f"{out}: mu and sigma of {count} images, {features} features")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Every task, engine, stage, metric and zoo model found on disk."""
    deferred("numpy")
    from compress import api
    from compress.commands.available import shown

    found = api.available()
    if as_json:
        _print_json(found)
    else:
        print(shown(found))


@app.command()
def explain(
    name: Annotated[
        str, typer.Argument(help="a stage, metric, task or engine; `adapter`, `data`, `gates`, `models`, `recipe`")
    ] = "",
) -> None:
    """What a stage, metric, task or engine does, and its parameters; what recipes and gates can say, what data and
    models they take."""
    deferred("numpy")
    from compress import api

    print(api.explain(name))


@app.command()
def schema() -> None:
    """The JSON Schema of recipes, for editors."""
    from compress import api

    _print_json(api.schema())


@app.command()
def doctor(
    recipes: Annotated[
        list[Path] | None, typer.Argument(help="tell what these need; default: those in ./recipes")
    ] = None,
    as_json: Json = False,
) -> None:
    """What this machine has: engines, versions, CPU, memory, what recipes need, and how to install what lacks."""
    from compress import api

    found = api.doctor(recipes or ())
    if as_json:
        _print_json(found)
        return
    for title, rows in found.items():
        print(title)
        for key, value in rows.items():
            print(f"  {key:<{max(map(len, rows))}}  {value}")


@app.command()
def cache(
    cache: CacheDir = None,
    verify: Annotated[bool, typer.Option("--verify", help="hash every file of every entry again")] = False,
    max_size: Annotated[
        str, typer.Option("--max-size", help="evict the least recently used down to this, e.g. 20GB")
    ] = "",
    as_json: Json = False,
) -> None:
    """Show, verify or shrink the cache. Exit 1 if an entry is corrupt."""
    from compress import api
    from compress.commands.cache import is_sound, shown

    found = api.cache(cache, verify=verify, max_size=max_size)
    if as_json:
        _print_json(found)
    else:
        print(shown(found))
    if not is_sound(found):
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The `pare` command: runs one verb and turns every error into its exit code."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for some reads every installed distribution
    keep_to_quota(os.environ)
    sys.exit(exit_code(app, list(sys.argv[1:] if arguments is None else arguments)))


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _finish(comparisons: tuple[Comparison, ...], as_json: bool) -> None:
    try:
        _show(comparisons, as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        unread()  # the verdict still is the exit code
    worst = max((c.exit_code for c in comparisons), key=[0, 4, 1].index, default=0)
    raise typer.Exit(worst)


def _show(comparisons: tuple[Comparison, ...], as_json: bool) -> None:
    from evaluation.report import result, runs_table, terminal

    if as_json:
        values = [result.to_dict(c) for c in comparisons]
        _print_json(values[0] if len(values) == 1 else values)
    else:
        for comparison in comparisons:
            terminal.show(comparison)
        if len(comparisons) > 1:
            runs_table.show(comparisons)


def _overrides(set_: list[str] | None, device: str | None) -> list[str]:
    return [*(set_ or ()), *([f"device={device}"] if device is not None else ())]


@contextmanager
def _listening(as_json: bool) -> Iterator[Emit]:
    from compress.commands.progress import Progress
    from compress.interrupts import heeding

    with Progress(quiet=as_json or not sys.stderr.isatty()) as shown, heeding(shown) as emit:
        yield emit


if __name__ == "__main__":
    main()
