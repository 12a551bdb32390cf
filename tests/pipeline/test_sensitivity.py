"""What quantizing each layer alone costs, measured on tiny models and compared with doing it by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from compress.artifact import Artifact, Quantization, Setting, Settings
from compress.catalogue import find_stage
from compress.context import Context
from compress.data.items import Data, Item
from compress.events import Event
from compress.files.hashing import digest_files
from compress.model.describing import describe
from compress.opening import open_task
from compress.quantization.sensitivity import FILE, Sensitivity, costliest, read, stale
from tests.families import tiny_image, tiny_text
from tests.stages import DATA, apply
from tests.tiny import tiny_diffusion, tiny_llama

NAME = "analyze.sensitivity"
SOME: dict[str, Any] = {"samples": 2, "group_size": 16}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_llama(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def measured(llama: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[Event]]:
    return apply(NAME, llama, tmp_path_factory.mktemp("measured") / "out", **SOME)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[Event]]:
    folder = tmp_path_factory.mktemp("generated")
    model = describe(tiny_diffusion(folder / "model")).calling(num_inference_steps=5, guidance_scale=3.0)
    return apply(NAME, model, folder / "out", bits=(4,), timesteps=3, **SOME)


def by_hand(table: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Rounding to nearest, asymmetric, a scale a group."""
    groups = table.reshape(-1, group)
    low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero = torch.round(-low / scale)
    codes = (torch.round(groups / scale) + zero).clamp(0, 2**bits - 1)
    return ((codes - zero) * scale).reshape(table.shape)


def test_a_language_models_layer_costs_its_kl_in_nats_a_token(measured: tuple[Artifact, list[Event]]) -> None:
    task: Any = open_task(measured[0])
    found = read(measured[0])["model"]
    assert (found.measure, found.bits, found.group_size, found.calls) == ("kl", (8, 4), 16, 2)
    layer = task.model.model.layers[1].mlp.down_proj
    texts = [torch.tensor([task.encode(item.text)]) for item in DATA.first(2)]
    with torch.no_grad():
        wanted = [task.model(text).logits.log_softmax(-1) for text in texts]
        layer.weight.copy_(by_hand(layer.weight, 4, 16))
        kept = [task.model(text).logits.log_softmax(-1) for text in texts]
    sums = [functional.kl_div(a, b, log_target=True, reduction="sum") for a, b in zip(kept, wanted, strict=True)]
    by = float(sum(sums)) / sum(text.shape[1] for text in texts)
    assert found.layers["model.layers.1.mlp.down_proj"].cost[4] == pytest.approx(by, rel=1e-3)


def test_fewer_bits_cost_more_and_all_layers_are_reported(measured: tuple[Artifact, list[Event]]) -> None:
    found = read(measured[0])["model"]
    assert {"model.embed_tokens", "lm_head", "model.layers.0.self_attn.q_proj"} <= found.layers.keys()
    assert len(found.layers) == 16
    assert all(0 < layer.cost[8] < layer.cost[4] for layer in found.layers.values())
    assert found.layers["model.layers.0.mlp.up_proj"].weights == 64 * 32
    worst = next(costliest(found, 4, 1))
    assert worst[1] == max(layer.cost[4] for layer in found.layers.values())


def test_no_file_of_the_model_changes_and_the_table_is_one_more(
    llama: Artifact, measured: tuple[Artifact, list[Event]]
) -> None:
    before, after = digest_files(llama.path), digest_files(measured[0].path)
    assert after.keys() - before.keys() == {FILE, "pare.json"}
    assert {name: after[name] for name in before} == before


def test_the_note_names_the_costliest_and_carries_what_the_report_draws(
    measured: tuple[Artifact, list[Event]],
) -> None:
    facts = measured[1][-1].facts
    worst = next(costliest(read(measured[0])["model"], 4, 1))[0]
    assert str(facts["costliest"]).startswith(worst)
    assert "nats" in measured[1][-1].message or "kl" in measured[1][-1].message
    json.dumps(facts["sensitivity"])


def test_a_denoisers_layers_cost_at_each_of_its_own_timesteps(generated: tuple[Artifact, list[Event]]) -> None:
    found = read(generated[0])["unet"]
    assert found.measure == "relative error"
    assert len(found.timesteps) == 3
    assert list(found.timesteps) == sorted(found.timesteps, reverse=True)
    for layer in found.layers.values():
        assert layer.cost[4] == pytest.approx(sum(layer.timesteps[4]) / 3, rel=1e-4)
    conv, linear = found.layers["conv_in"], found.layers["time_embedding.linear_1"]
    assert (conv.rows, conv.row) == (32, 36)
    assert conv.cost[4] > 0
    assert linear.cost[4] > 0


def test_a_transformers_layers_are_measured_too_and_a_text_encoder_has_no_timesteps(tmp_path: Path) -> None:
    model = describe(tiny_image(tmp_path / "model", "pixart-alpha")).calling(num_inference_steps=2)
    made, _ = apply(NAME, model, tmp_path / "out", bits=(4,), components=("transformer", "text_encoder"), **SOME)
    found = read(made)
    assert len(found["transformer"].timesteps) == 2
    assert found["text_encoder"].timesteps == ()
    assert all(layer.cost[4] > 0 for name, layer in found["transformer"].layers.items() if "attn1" in name)


def test_transposed_layers_are_reached(tmp_path: Path) -> None:
    made, _ = apply(NAME, describe(tiny_text(tmp_path / "model", "gpt2")), tmp_path / "out", bits=(4,), **SOME)
    layer = read(made)["model"].layers["transformer.h.0.mlp.c_proj"]
    assert (layer.rows, layer.row) == (32, 128)
    assert layer.cost[4] > 0


def test_a_run_that_was_cut_off_goes_on_and_ends_in_the_same_bytes(
    llama: Artifact, measured: tuple[Artifact, list[Event]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = find_stage(NAME)
    asked: list[str] = []
    from compress.stages.analyze import sensitivity as own

    real = own._costs

    def counted(task: Any, name: str, weight: Any, *rest: Any) -> dict[str, list[float]]:
        if len(asked) == 6:
            asked.append("cut off")
            raise KeyboardInterrupt
        asked.append(weight.name)
        return real(task, name, weight, *rest)

    monkeypatch.setattr(own, "_costs", counted)
    for out in ("one", "two"):
        (tmp_path / out).mkdir()
        (tmp_path / "scratch").mkdir(exist_ok=True)
        context = Context(tmp_path / out, tmp_path / "scratch", data={"calibration": DATA})
        if out == "one":
            with pytest.raises(KeyboardInterrupt):
                stage.run(llama, stage.params(**SOME), context)
            (tmp_path / "scratch/model/costs.jsonl").open("a").write('["lm_head", {"8": [0.')  # cut in mid-line
        else:
            stage.run(llama, stage.params(**SOME), context)
    measured_again = asked[asked.index("cut off") + 1 :]
    assert len(measured_again) == 16 - 6
    assert not set(measured_again) & set(asked[:6])
    assert (tmp_path / "two" / FILE).read_bytes() == (measured[0].path / FILE).read_bytes()


def test_the_table_travels_with_later_stages_and_is_reported_stale_behind_those_that_change_weights(
    generated: tuple[Artifact, list[Event]], tmp_path: Path
) -> None:
    later, _ = apply("accelerate.steps", generated[0], tmp_path / "later", steps=4)
    assert read(later) == read(generated[0])
    assert stale(later, "unet") == ""
    assert stale(later, "vae") == "no analyze.sensitivity of `vae` went before it"
    cut, _ = apply("prune.width", later, tmp_path / "cut", ratio=0.5, importance="magnitude")
    assert stale(cut, "unet") == "prune.width changed `unet` after analyze.sensitivity had measured it"


def test_texts_too_short_to_score_are_an_error_and_not_an_empty_table(llama: Artifact, tmp_path: Path) -> None:
    nothing = Data("empty", "texts", "digest", -1, lambda i: Item(str(i), ""))
    with pytest.raises(Exception, match="no calibration document has two tokens"):
        apply(NAME, llama, tmp_path / "out", data=nothing, **SOME)


def test_packed_weights_and_hooked_modules_are_refused(llama: Artifact) -> None:
    stage = find_stage(NAME)
    packed = llama.packing({"model": Quantization("nf4", 4, "bitsandbytes")})
    assert "packed already" in stage.refuse(packed, stage.params())
    hooked = Artifact(
        llama.path, llama.task, llama.components, Settings(hook=(Setting("accelerate.compile", "model"),))
    )
    assert "put accelerate.compile behind it" in stage.refuse(hooked, stage.params())


def test_the_disk_for_unquantized_logits_is_planned(llama: Artifact) -> None:
    stage = find_stage(NAME)
    words = llama.config("model")["vocab_size"]
    reported = stage.forecast(llama, stage.params(samples=3, tokens=10))
    assert reported.scratch_bytes == 3 * 10 * words * 4
    assert "no weight changes" in reported.reported


@pytest.mark.parametrize("text", ["{}", '{"schema": 2, "components": {}}', '{"schema": 1, "components": {"unet": 3}}'])
def test_a_table_that_does_not_read_is_reported_with_its_place(llama: Artifact, tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(Exception, match="no table of sensitivities") as caught:
        read(Artifact(tmp_path, llama.task, llama.components))
    assert FILE in str(caught.value)


def test_nothing_is_read_where_there_is_nothing(tmp_path: Path, llama: Artifact) -> None:
    found: dict[str, Sensitivity] = read(Artifact(tmp_path, llama.task, llama.components))
    assert found == {}
