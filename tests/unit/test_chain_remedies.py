"""What one step of a chain leaves to another that cannot take it: each remedy is applied here, and the recipe then plans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.errors import Problem, RecipeError
from compress.planning.plan import Plan
from tests.tiny import tiny_diffusion, tiny_llama

Step = Mapping[str, Mapping[str, Any]]
LLAMA, IMAGES = "llama", "images"
DATA = {
    LLAMA: {"calibration": "zoo://docstrings/validation", "train": "zoo://docstrings/train"},
    IMAGES: {"calibration": "zoo://digits/validation", "train": "zoo://digits/train"},
}
FOUR = {"group_size": 32}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {LLAMA: tiny_llama(root / "llama"), IMAGES: tiny_diffusion(root / "images")}


def step(name: str, **params: Any) -> Step:
    return {name: params}


def planned(model: Path, kind: str, steps: tuple[Step, ...], tmp_path: Path) -> Plan:
    import yaml

    written = {"schema": 1, "name": "r", "model": str(model), "data": DATA[kind], "stages": list(steps)}
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(written))
    found = compress.plan(file, cache=tmp_path / "cache")
    assert isinstance(found, Plan)
    return found


def reported(*args: Any) -> tuple[Problem, ...]:
    try:
        planned(*args)
    except RecipeError as error:
        return error.problems
    return ()


GPTQ, AO, OPENVINO, NNCF = "quantize.gptq", "quantize.torchao", "build.openvino", "quantize.nncf"
CUT: Step = {"prune.depth": {"ratio": 0.5}}
CASES: dict[str, tuple[str, tuple[Step, ...], str, tuple[tuple[Step, ...], ...]]] = {
    "two packers": (
        LLAMA,
        (step(GPTQ, **FOUR), step(AO)),
        f"keep one of the two: leave {GPTQ} or {AO} out; or give {AO} `from: source`, which makes it a branch of its own",
        (
            (step(GPTQ, **FOUR),),
            (step(AO),),
            (step(GPTQ, **FOUR), {AO: {"from": "source"}}),
        ),
    ),
    "two packers after a cut": (
        LLAMA,
        (CUT, step(AO), step(GPTQ, **FOUR)),
        f"keep one of the two: leave {AO} or {GPTQ} out; or give {GPTQ} `from: prune.depth`, which makes it a branch of its own",
        ((CUT, step(AO), {GPTQ: {**FOUR, "from": "prune.depth"}}),),
    ),
    "taught under a rounding": (
        LLAMA,
        (step(GPTQ, **FOUR), step("distill.quantized", steps=1, **FOUR)),
        f"keep one of the two: leave {GPTQ} or distill.quantized out; or give distill.quantized `from: source`, which makes it a branch of its own",
        ((step("distill.quantized", steps=1, **FOUR),),),
    ),
    "packed, then built": (
        LLAMA,
        (step(GPTQ, **FOUR), step(OPENVINO)),
        f"leave {GPTQ} out, and give {OPENVINO} `precision: int8_weights` or put {NNCF} behind it; "
        f"or give {OPENVINO} `from: source`, which makes it a branch of its own",
        (
            (step(OPENVINO, precision="int8_weights"),),
            (step(OPENVINO), step(NNCF, mode="int4_weights")),
            (step(GPTQ, **FOUR), {OPENVINO: {"from": "source"}}),
        ),
    ),
    "packed, then one engine or another": (
        LLAMA,
        (step(AO), step("build.fastest", engines=["openvino"])),
        f"leave {AO} out, and give build.fastest `precisions: [int8_weights]`; "
        "or give build.fastest `from: source`, which makes it a branch of its own",
        ((step("build.fastest", engines=["openvino"], precisions=["int8_weights"]),),),
    ),
    "packed, then exported": (
        LLAMA,
        (step(AO), step("export.onnx")),
        f"leave {AO} out, for export.onnx has no few bits; or give export.onnx `from: source`, which makes it a branch of its own",
        ((step("export.onnx"),), (step(AO), {"export.onnx": {"from": "source"}})),
    ),
    "packed, then cut": (
        LLAMA,
        (step(GPTQ, **FOUR), CUT),
        f"put prune.depth before {GPTQ}",
        ((CUT, step(GPTQ, **FOUR)),),
    ),
    "packed, then a quantizer of engines": (
        LLAMA,
        (step(AO), step(NNCF, mode="int8_weights")),
        f"leave {AO} out, and put {OPENVINO} before it",
        ((step(OPENVINO), step(NNCF, mode="int8_weights")),),
    ),
    "built, then packed": (
        LLAMA,
        (step(OPENVINO), step(GPTQ, **FOUR)),
        f"leave {GPTQ} out, and give {OPENVINO} `precision: int8_weights` or put {NNCF} behind it; "
        f"or give {GPTQ} `from: source`, which makes it a branch of its own",
        (
            (step(OPENVINO), step(NNCF, mode="int8_weights")),
            (step(OPENVINO, precision="int8_weights"),),
            (step(OPENVINO), {GPTQ: {**FOUR, "from": "source"}}),
        ),
    ),
    "built, then cut": (LLAMA, (step(OPENVINO), CUT), f"put prune.depth before {OPENVINO}", ((CUT, step(OPENVINO)),)),
    "built twice": (
        LLAMA,
        (step(OPENVINO), step("export.onnx", components=["model"])),
        f"keep one of the two: leave {OPENVINO} or export.onnx out; or give export.onnx `from: source`, which makes it a branch of its own",
        ((step(OPENVINO),), (step(OPENVINO), {"export.onnx": {"from": "source"}})),
    ),
    "another engine than is quantized": (
        LLAMA,
        (step("build.onnxruntime"), step(NNCF, mode="int8_weights")),
        f"put {OPENVINO} in place of build.onnxruntime, or leave this stage out",
        ((step(OPENVINO), step(NNCF, mode="int8_weights")), (step("build.onnxruntime"),)),
    ),
    "narrow when built, then quantized": (
        LLAMA,
        (step(OPENVINO, precision="int8_weights"), step(NNCF, mode="int4_weights")),
        f"leave {NNCF} out, or the precision of {OPENVINO}",
        ((step(OPENVINO, precision="int8_weights"),), (step(OPENVINO), step(NNCF, mode="int4_weights"))),
    ),
    "by ids of their own": (
        LLAMA,
        (step(AO, id="narrow"), step(GPTQ, **FOUR, id="narrower")),
        "keep one of the two: leave narrow or narrower out; or give narrower `from: source`, which makes it a branch of its own",
        ((step(AO, id="narrow"),), (step(GPTQ, **FOUR, id="narrower"),)),
    ),
    "a part twice": (
        IMAGES,
        (step(AO), step(AO, mode="int8_dynamic", components=["unet"])),
        f"keep one of the two: leave {AO} or {AO}-2 out, or name other `components:`, such as text_encoder; "
        f"or give {AO}-2 `from: source`, which makes it a branch of its own",
        ((step(AO), step(AO, mode="int8_dynamic", components=["text_encoder"])),),
    ),
    "of another task": (
        IMAGES,
        (step(GPTQ, **FOUR),),
        "remove this stage, or put quantize.bitsandbytes or quantize.nncf or quantize.torchao in its place",
        ((step(AO),), ()),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_remedy_is_for_what_is_there_and_its_recipe_plans(
    case: str, models: Mapping[str, Path], tmp_path: Path
) -> None:
    kind, steps, fix, remedied = CASES[case]
    assert fix in {problem.fix for problem in reported(models[kind], kind, steps, tmp_path)}
    for number, other in enumerate(remedied):
        (tmp_path / str(number)).mkdir()
        assert len(planned(models[kind], kind, other, tmp_path / str(number)).nodes) == len(other)


def test_a_teacher_that_a_step_packed_is_one_before_it_instead(models: Mapping[str, Path], tmp_path: Path) -> None:
    taught = {"distill.logits": {"from": "source", "teacher": GPTQ}}
    problems = reported(models[LLAMA], LLAMA, (step(GPTQ, **FOUR), taught), tmp_path)
    assert [problem.fix for problem in problems] == ["name a step before the one that packs it, or source"]
    again = {"distill.logits": {"from": "source", "teacher": "source"}}
    assert not reported(models[LLAMA], LLAMA, (step(GPTQ, **FOUR), again), tmp_path)
