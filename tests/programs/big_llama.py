"""What plans say of memory and disk, and what is taken, on a Llama of 1.5 B parameters: cut, packed in 4 bits, built, evaluated.

Makes the model (random weights, bfloat16, a file a layer, never whole in memory) with the tokenizer of the zoo's language model, runs
`recipes/text/big-*.yaml` on it, each in a process of its own, and writes `reports/big.md`. What is taken is the sum over the process and all
that it starts of their proportional sets (what several of them share counts once), looked at three times a second; disk is what the
cache grew by at most; both in GB. Seconds are those of two cores, beside other work. A step that both recipes have ran once. Runs that
were cut short go on from the cache.

python -m tests.programs.big_llama [a shape: big|small] [a folder] [a recipe of your own …]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from compress.planning.resources import PROCESS_BYTES
from compress.sources.models import find_folder

ROOT = Path(__file__).parents[2]
RECIPES = (ROOT / "recipes/text/big-packed.yaml", ROOT / "recipes/text/big-engine.yaml")
SHAPES: Mapping[str, Mapping[str, int]] = {
    "big": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32},
    "small": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}
WORDS, POSITIONS, ADDED = 16384, 2048, 0.2
HEAD = ("recipe", "step", "memory, planned", "measured", "ratio", "disk, planned", "measured", "ratio", "seconds")
Plan = Mapping[str, Mapping[str, float]]  # by step, what it takes
EVALUATION, WHOLE = "evaluation", "all"
LIBRARIES = 2 * PROCESS_BYTES  # which a plan adds to what its hungriest step takes


def make(folder: Path, shape: Mapping[str, int]) -> Path:
    """Write the model, unless it is there: a file for what is in no block, and one for each block."""
    if (folder / "model.safetensors.index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _beside(folder, shape)
    where: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    files = [_outside(shape), *(_block(shape, number) for number in range(shape["num_hidden_layers"]))]
    for number, shapes in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {key: _drawn(key, size, generator) for key, size in shapes.items()}
        save_file(tensors, folder / name, {"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    size = sum(2 * _count(one) for shapes in files for one in shapes.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _beside(folder: Path, shape: Mapping[str, int]) -> None:
    """The tokenizer of the zoo's language model, and a config."""
    from transformers import AutoTokenizer, LlamaConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(find_folder("zoo://docs-llama", Path()))
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    heads = {"num_key_value_heads": shape["num_attention_heads"] // 4, "max_position_embeddings": POSITIONS}
    config: Any = LlamaConfig(vocab_size=WORDS, **ends, **heads, **shape)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(folder)


def _outside(shape: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    words = (WORDS, shape["hidden_size"])
    return {"model.embed_tokens.weight": words, "lm_head.weight": words, "model.norm.weight": words[1:]}


def _block(shape: Mapping[str, int], number: int) -> dict[str, tuple[int, ...]]:
    wide, inner = shape["hidden_size"], shape["intermediate_size"]
    sizes: dict[str, tuple[int, ...]] = {f"{name}_layernorm": (wide,) for name in ("input", "post_attention")}
    sizes |= {f"self_attn.{name}_proj": (wide, wide) for name in "qo"}
    sizes |= {f"self_attn.{name}_proj": (wide // 4, wide) for name in "kv"}
    sizes |= {"mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide), "mlp.down_proj": (wide, inner)}
    return {f"model.layers.{number}.{name}.weight": size for name, size in sizes.items()}


def _drawn(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Spread as in trained models: what a block adds is little beside what passes through it, so rounding errors stay errors."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    spread = 1.0 if name.startswith("model.embed") else size[1] ** -0.5
    adds = ADDED if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
    return torch.empty(size, dtype=torch.bfloat16).normal_(0, spread * adds, generator=generator)


def _count(size: tuple[int, ...]) -> int:
    return int(torch.Size(size).numel())


@dataclass
class Watch:
    """What a process and all that it starts take, as it goes: (time, bytes of memory, bytes of disk)."""

    process: int
    cache: Path
    seen: list[tuple[float, int, int]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.ended.wait(0.3):
            self.seen.append((time.time(), _resident(self.process), _written(self.cache)))

    def within(self, began: float, until: float) -> dict[str, float]:
        """The most memory, by how much the disk grew at most, and how long it was."""
        before = [disk for at, _, disk in self.seen if at <= began][-1:]
        during = [(memory, disk) for at, memory, disk in self.seen if began <= at <= until]
        first = before[0] if before else during[0][1]
        grown = max(disk for _, disk in during) - first
        return {"memory": max(memory for memory, _ in during), "disk": grown, "seconds": until - began}


def _resident(process: int) -> int:
    """Of a process and its children, each page that several share once, bytes."""
    try:
        found = psutil.Process(process)
        every = [found, *found.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(proportional(one.pid) for one in every)


def proportional(process: int) -> int:
    """The proportional set of one process, bytes; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _written(folder: Path) -> int:
    """What the files in a folder take, each once however many names it has."""
    sizes: dict[int, int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found = (Path(parent) / name).stat()
            except OSError:  # gone since
                continue
            sizes[found.st_ino] = 512 * found.st_blocks
    return sum(sizes.values())


def run(recipe: Path, model: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Run a recipe and say what each of its steps took that was not in the cache, the evaluation and the whole of it."""
    out, log = folder / recipe.stem, folder / f"{recipe.stem}.log"
    (out / "events.jsonl").unlink(missing_ok=True)
    command = [sys.executable, "-m", "compress.cli", "run", *_given(recipe, model, folder / "cache"), "--out", str(out)]
    with log.open("w") as printed, subprocess.Popen(command, stdout=printed, stderr=printed) as process:
        watch = Watch(process.pid, folder / "cache")
        thread = threading.Thread(target=watch.run)
        thread.start()
        code = process.wait()
        watch.ended.set()
        thread.join()
    if code not in (0, 1):  # 1: a gate failed
        sys.stderr.write(log.read_text()[-3000:])
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return dict(_taken(events, watch, whole=code in (0, 1)))


def _taken(events: Sequence[Mapping[str, Any]], watch: Watch, *, whole: bool) -> Iterator[tuple[str, dict[str, float]]]:
    started = {e["what"]: e["time"] for e in events if e["kind"] == "started"}
    finished = {e["what"]: e["time"] for e in events if e["kind"] == "finished"}
    for step, until in finished.items():
        yield step, watch.within(started[step], until)
    if whole:
        yield EVALUATION, watch.within(max(finished.values(), default=watch.seen[0][0]), watch.seen[-1][0])


def planned(recipe: Path, model: Path) -> Plan:
    """What a plan on an empty cache says of each step, and of the whole. `libraries`: what it reckons for processes."""
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-m", "compress.cli", "plan", *_given(recipe, model, Path(empty)), "--json"]
        (found,) = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    steps = {
        node["id"]: {"memory": LIBRARIES + node["memory_bytes"], "disk": node["disk_bytes"]} for node in found["nodes"]
    }
    return {**steps, WHOLE: {"memory": found["memory_bytes"], "disk": found["disk_bytes"]}}


def _given(recipe: Path, model: Path, cache: Path) -> list[str]:
    return [str(recipe), "--cache", str(cache), "--set", f"model={model}"]


def table(recipe: str, measured: Mapping[str, Mapping[str, Mapping[str, float]]], plan: Plan) -> Iterator[str]:
    """A line of the report for each step, wherever it was measured, and one for the whole, which takes what its hungriest step takes and
    the disk of all."""
    known = {step: row for rows in measured.values() for step, row in rows.items() if step in plan}
    taken = {**known, **measured[recipe]}
    stages = [row for step, row in taken.items() if step != EVALUATION]
    whole = {
        "memory": max(row["memory"] for row in taken.values()),
        "disk": sum(row["disk"] for row in stages),
        "seconds": sum(row["seconds"] for row in taken.values()),
    }
    for step, row in [*taken.items(), (WHOLE, whole)]:
        cells = [recipe, step]
        for kind in ("memory", "disk"):
            said = plan.get(step, {}).get(kind)
            cells += (
                [f"{said / 1e9:.2f}", f"{row[kind] / 1e9:.2f}", f"{said / row[kind]:.2f}"]
                if said
                else ["", f"{row[kind] / 1e9:.2f}", ""]
            )
        yield f"| {' | '.join([*cells, format(row['seconds'], '.0f')])} |"


def main() -> None:
    shape, folder, *named = (*sys.argv[1:], *("big", "runs/big")[len(sys.argv) - 1 :])
    place = Path(folder).absolute()
    place.mkdir(parents=True, exist_ok=True)
    model = make(place / "model", SHAPES[shape])
    notes, recipes = place / "notes.json", [Path(one) for one in named] or RECIPES
    measured: dict[str, dict[str, Any]] = json.loads(notes.read_text()) if notes.is_file() else {}
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for recipe in recipes:
        known = measured.setdefault(recipe.stem, {})
        for step, row in run(recipe, model, place).items():
            # What was in the cache, such as a side's evidence, takes nothing the second time.
            if row["seconds"] > known.get(step, row)["seconds"] or step not in known:
                known[step] = row
        notes.write_text(json.dumps(measured, indent=1))
        lines += table(recipe.stem, measured, planned(recipe, model))
    text = "\n".join([__doc__.partition("\n\npython")[0], "", *lines, ""])
    (ROOT / "reports/big.md" if shape == "big" and not named else place / "big.md").write_text(f"# {text}")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
