"""The documentation as tests read it: fenced blocks with their places, links, headings; and a folder in which its examples work."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^```(\w*) *(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the word behind it, and its text."""

    file: Path
    line: int
    language: str
    info: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All blocks of the documentation in these languages."""
    return [block for file in PAGES for block in _blocks(file) if block.language in languages]


def _blocks(file: Path) -> Iterator[Block]:
    text = file.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        yield Block(file, text.count("\n", 0, match.start()) + 1, match[1], match[2], match[3])


def prose(file: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", file.read_text(encoding="utf-8"))


def links(file: Path) -> Iterator[tuple[str, str]]:
    """Path and heading of every link of a page to a file."""
    for target in _LINK.findall(prose(file)):
        if "://" not in target:
            path, _, heading = target.partition("#")
            yield path, heading


def headings(file: Path) -> set[str]:
    """The names by which links reach a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands() -> Iterator[tuple[str, str]]:
    """Every `pare …` line of the documentation, with its place."""
    for block in blocks("console", "yaml"):
        for line in block.text.splitlines():
            if match := re.search(r"(?:^\$ |\.venv/bin/)(pare .*)", line):
                yield block.place, match[1].partition("   ")[0]
    for file in PAGES:
        for inline in re.findall(r"`(pare [^`]+)`", prose(file)):
            yield str(file.relative_to(ROOT)), inline


def furnish(folder: Path) -> None:
    """What a user's folder holds in the examples, tiny: models, an adapter, images, texts, conversations, an earlier run."""
    from compress.artifact import write_manifest
    from compress.model.describing import describe
    from compress.zoo import zoo_model
    from tests.adapters import branches, shapes, write_peft
    from tests.chat_templates import chatting, exchanges
    from tests.editors import edits, tiny_editor
    from tests.originals import write_original
    from tests.tiny import tiny_diffusion, tiny_llama

    shutil.copytree(tiny_diffusion(folder / "sd"), folder / "stable-diffusion-v1-5")
    write_original(folder / "stable-diffusion-v1-5", folder / "juggernaut.safetensors", "sd1")
    llama = tiny_llama(folder / "llama-3.2-1b")
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    every = shapes(llama / "model.safetensors")
    write_peft(folder / "lora", branches({name: every[name] for name in every if "q_proj" in name}))
    shutil.copytree(llama, folder / "small")
    chatting(Path(shutil.copytree(llama, folder / "llama-3.2-1b-instruct")))
    exchanges(folder / "chats.jsonl", 8)
    exchanges(folder / "held-out-chats.jsonl", 8, first=100)
    shutil.copytree(folder / "llama-3.2-1b-instruct", folder / "small-granite")
    fast = Path(shutil.copytree(folder / "stable-diffusion-v1-5", folder / "fast-sana"))
    write_manifest(describe(fast).calling(num_inference_steps=2))
    shutil.copytree(zoo_model("digits-clip"), folder / "clip")
    for shade, name in enumerate(("train-images", "held-out")):
        images(folder / name, shade)
    inpainter = tiny_editor(folder / "inpainter", "StableDiffusionInpaintPipeline")
    shutil.copytree(inpainter, folder / "stable-diffusion-inpainting")
    for shade, name in enumerate(("train-edits", "held-out-edits")):
        edits(folder / name, masks=True, count=64, shade=shade)
    (folder / "held-out.jsonl").write_text("".join(json.dumps({"text": f"held out, {i}"}) + "\n" for i in range(300)))
    (folder / "train.txt").write_text("\n\n".join(f"to learn from, number {i}" for i in range(300)))
    for name in ("recipes", "reports"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "recipes/quickstart.yaml", folder)
    (folder / "runs").mkdir()
    (folder / "runs/quickstart").symlink_to(ROOT / "reports/quickstart")


def images(folder: Path, shade: int, count: int = 512) -> None:
    """A folder of images with captions, others for each shade."""
    folder.mkdir()
    for i in range(count):
        Image.fromarray(np.full((8, 8, 3), (i % 256, i // 256, 200 * shade), np.uint8)).save(folder / f"{i}.png")
    rows = [{"file_name": f"{i}.png", "text": f"number {i} of {folder.name}"} for i in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
