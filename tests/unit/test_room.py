"""What plans say a large model takes, from headers and configs; and that one which does not fit is refused unread."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import compress
from compress.artifact import LANGUAGE_MODEL, Quantization
from compress.errors import RecipeError
from compress.files.hashing import unread_bytes
from compress.model.describing import describe
from compress.planning.plan import Plan
from compress.quantization.sizes import held_bytes, opened_bytes, parameters
from tests.fakes import write_headers

HIDDEN, INNER, WORDS, LAYERS = 64, 128, 256, 4
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": WORDS,
    "max_position_embeddings": 64,
    "torch_dtype": "bfloat16",
}
IN_BLOCK, OUTSIDE = 4 * HIDDEN**2 + 3 * HIDDEN * INNER, 2 * WORDS * HIDDEN
DATA = "{calibration: zoo://docstrings/validation, evaluate: zoo://docstrings/test}"


def llama(folder: Path, dtype: str = "BF16") -> Path:
    """One of headers, and zeros behind them."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("lm_head.weight", "model.embed_tokens.weight"), (WORDS, HIDDEN))
    for layer in range(LAYERS):
        before = f"model.layers.{layer}"
        shapes |= {f"{before}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{before}.mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        shapes[f"{before}.mlp.down_proj.weight"] = (HIDDEN, INNER)
    write_headers(folder / "model.safetensors", shapes, dtype)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": []}))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return llama(tmp_path / "model")


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    def made(model: Path, *stages: str, metrics: str = "[perplexity]") -> Plan:
        lines = "".join(f"  - {one}\n" for one in stages)
        text = (
            f"schema: 1\nname: room\nmodel: {model}\ndata: {DATA}\nstages:\n{lines}evaluate: {{metrics: {metrics}}}\n"
        )
        (tmp_path / "recipe.yaml").write_text(text)
        return compress.plan(tmp_path / "recipe.yaml", cache=tmp_path / "cache")

    return made


CUT = "prune.depth: {ratio: 0.5}"
ROUND = "quantize.autoround: {method: rtn, group_size: 32}"


def test_weights_are_counted_as_a_cut_will_leave_them(model: Path, plan: Callable[..., Plan]) -> None:
    (node,) = plan(model, CUT).nodes
    whole, half = OUTSIDE + LAYERS * IN_BLOCK, OUTSIDE + LAYERS // 2 * IN_BLOCK
    assert parameters(describe(model), LANGUAGE_MODEL) == whole
    assert parameters(node.expected, LANGUAGE_MODEL) == pytest.approx(half, rel=0.15)  # shared out by linear layers
    assert node.disk_bytes - 1_000_000 == pytest.approx(2 * half, rel=0.15)  # in the type that they were stored in
    assert node.memory_bytes == pytest.approx(4 * (whole + half), rel=0.15)  # the model, and beside it the shorter one


def test_a_stage_behind_a_cut_is_planned_on_what_is_left(model: Path, plan: Callable[..., Plan]) -> None:
    (whole,), (_, short) = plan(model, ROUND).nodes, plan(model, CUT, ROUND).nodes
    assert short.work < whole.work
    assert short.memory_bytes < whole.memory_bytes


def test_layouts_that_are_written_from_a_whole_model_hold_it(model: Path, plan: Callable[..., Plan]) -> None:
    rounded = "quantize.autoround: {method: rtn, group_size: 32, layout: %s}"
    (block,), (whole,) = (plan(model, rounded % layout).nodes for layout in ("compressed-tensors", "gptq"))
    assert whole.memory_bytes - block.memory_bytes <= 2 * parameters(describe(model), LANGUAGE_MODEL)
    assert whole.memory_bytes > block.memory_bytes


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_counted_at_their_width_and_the_head_as_it_was(model: Path, bits: int) -> None:
    packed = describe(model).packing({LANGUAGE_MODEL: Quantization("gptq", bits, "gptqmodel")})
    least = LAYERS * IN_BLOCK * bits // 8 + 2 * OUTSIDE
    assert least < held_bytes(packed, LANGUAGE_MODEL) < 1.15 * least
    unpacked = 2 * (OUTSIDE + LAYERS * IN_BLOCK)
    assert opened_bytes(packed, LANGUAGE_MODEL) == held_bytes(packed, LANGUAGE_MODEL) + unpacked


def test_engines_are_counted_as_they_keep_weights_or_at_their_width(model: Path) -> None:
    count = OUTSIDE + LAYERS * IN_BLOCK
    wide = describe(model).replacing({LANGUAGE_MODEL: "openvino"})
    narrow = wide.packing({LANGUAGE_MODEL: Quantization("int4_weights", 4, "openvino")})
    assert held_bytes(wide, LANGUAGE_MODEL) == 2 * count
    assert held_bytes(wide.replacing({LANGUAGE_MODEL: "onnx"}), LANGUAGE_MODEL) == 4 * count
    assert count // 2 < held_bytes(narrow, LANGUAGE_MODEL) < 0.6 * count


def test_a_build_holds_what_is_stored_what_is_compared_and_the_engine(model: Path, plan: Callable[..., Plan]) -> None:
    (wide,), (narrow,) = (plan(model, f"build.openvino: {{precision: {p}}}").nodes for p in ("float32", "int4_weights"))
    count = parameters(describe(model), LANGUAGE_MODEL)
    assert wide.memory_bytes == (2 + 4 + 2) * count
    assert narrow.memory_bytes == (2 + 4) * count + held_bytes(narrow.expected, LANGUAGE_MODEL)
    _, short = plan(model, CUT, "build.openvino: {precision: int4_weights}").nodes
    assert short.memory_bytes < narrow.memory_bytes
    assert short.disk_bytes < narrow.disk_bytes


def test_a_comparison_call_by_call_holds_both_sides(model: Path, plan: Callable[..., Plan]) -> None:
    one, both = plan(model).memory_bytes, plan(model, metrics="[kl]").memory_bytes
    assert both - one == 2 * parameters(describe(model), LANGUAGE_MODEL)


def test_shards_that_are_not_here_yet_are_counted_by_their_index(tmp_path: Path) -> None:
    whole = describe(llama(tmp_path / "model"))
    (tmp_path / "model" / "model.safetensors").unlink()
    index = {
        "metadata": {"total_size": 2 * 12_345},
        "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"},
    }
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert parameters(whole, LANGUAGE_MODEL) == 12_345


# What does not fit


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 600_000_000}.__getitem__)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The weights that are read meanwhile."""
    read: list[Path] = []

    def digest(path: Path) -> str:
        read.extend([path] if path.suffix == ".safetensors" else [])
        return "0" * 64

    monkeypatch.setattr("compress.files.hashing.digest_file", digest)
    monkeypatch.setattr("compress.planning.plan.LARGE", 0)
    return read


@pytest.mark.usefixtures("small_machine")
def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    model: Path, plan: Callable[..., Plan], unread: list[Path]
) -> None:
    with pytest.raises(RecipeError, match=r"needs about 1\.\d GB of memory, and this machine has 600 MB"):
        plan(model, CUT, ROUND)
    assert unread == []
    assert len(plan(model).nodes) == 0  # nothing is to be made
    assert unread


def test_a_disk_that_does_not_hold_it_is_reported_before_it_is_read(
    model: Path, plan: Callable[..., Plan], unread: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=1, used=0, free=500_000))
    with pytest.raises(RecipeError, match=r"needs about \d MB of disk, \d MB of it for [a-z.]+, and 0 MB are free"):
        plan(model, CUT, ROUND)
    assert unread == []


@pytest.mark.usefixtures("small_machine")
def test_what_may_be_in_the_cache_is_looked_up_before_a_model_is_refused(
    model: Path, plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    (node,) = plan(model, CUT).nodes
    entry = tmp_path / "cache" / "entries" / node.key
    entry.mkdir(parents=True)
    (entry / ".entry.json").write_text(json.dumps({"stage": "prune.depth"}))
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2**30}.__getitem__)
    monkeypatch.setattr("compress.planning.plan.LARGE", 0)
    other = llama(tmp_path / "copy")
    assert unread_bytes(other, tmp_path / "cache" / "digests") > 0
    (found,) = plan(other, CUT).nodes
    assert found.cached


def test_what_was_read_before_and_what_is_small_is_planned_once(
    model: Path, plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    monkeypatch.setattr("compress.planning.plan._unread", lambda *given: looks.append(given))
    plan(model, CUT)
    monkeypatch.setattr("compress.planning.plan.LARGE", 0)
    plan(model, CUT)
    assert not looks


@pytest.mark.usefixtures("small_machine", "unread")
def test_whatever_else_is_wrong_is_reported_first(model: Path, plan: Callable[..., Plan]) -> None:
    with pytest.raises(RecipeError, match="group_size 96"):
        plan(model, CUT, "quantize.autoround: {method: rtn, group_size: 96}")
