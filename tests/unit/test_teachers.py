"""A teacher that is a model of its own: found, checked and counted as a recipe's model is, and compared with its student."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.catalogue import find_stage
from compress.cli import main
from compress.commands.run import with_weights
from compress.distillation.compatibility import reported_misfits, trajectory_misfits
from compress.distillation.few_steps import FewSteps
from compress.errors import ModelError, RecipeError
from compress.events import silent
from compress.execution.execute import _plan_of, node_refs
from compress.files.hashing import digest_folder
from compress.model.describing import describe
from compress.planning.nodes import with_lineage
from compress.planning.plan import Plan
from compress.planning.show import plan_dict, plan_text
from compress.recipe.reading import hub_references, read_text
from compress.store.cache import Cache
from tests.fakes import language_model, pipeline, write_safetensors

TEXT = "schema: 1\nname: r\nmodel: ./student\ndata: {train: texts.txt}\nstages:\n"
TAUGHT = TEXT + "  - distill.logits: {teacher: %s, tokens: 8}\n"
COMMIT = "0123456789abcdef" * 2 + "01234567"


def llama(folder: Path, vocabulary: str = "abc", **config: Any) -> Path:
    """A Llama as far as plans look."""
    language_model(folder)
    message = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": len(vocabulary)}
    (folder / "config.json").write_text(json.dumps({**message, "num_hidden_layers": 0, **config}))
    tokens = {"model": {"vocab": {token: n for n, token in enumerate(vocabulary)}}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A recipe's folder, with two students and teachers to be."""
    llama(tmp_path / "student")
    llama(tmp_path / "larger", hidden_size=64)
    (tmp_path / "texts.txt").write_text("one\n\ntwo\n")
    return tmp_path


def plan(place: Path, text: str, *overrides: str) -> Plan:
    (place / "r.yaml").write_text(text)
    return compress.plan(place / "r.yaml", overrides, cache=place / "cache")


def reported(place: Path, text: str, *overrides: str) -> list[str]:
    """Every problem, with its place and its remedy."""
    with pytest.raises(RecipeError) as caught:
        plan(place, text, *overrides)
    return [f"{p.place.removeprefix(f'{place}/')} {p.message} | {p.fix}" for p in caught.value.problems]


# Which one it is


def test_a_folder_beside_the_recipe_teaches_and_counts_by_its_content(place: Path) -> None:
    found = plan(place, TAUGHT % "./larger")
    (node,) = found.nodes
    assert node.lent == {"teacher": digest_folder(place / "larger", None)}
    assert found.models[node.inputs["teacher"]].artifact.path == place / "larger"
    shutil.copytree(place / "larger", place / "elsewhere")
    assert plan(place, TAUGHT % "./elsewhere").nodes[0].key == node.key
    (place / "larger/note.txt").write_text("another model")
    assert plan(place, TAUGHT % "./larger").nodes[0].key not in (node.key, plan(place, TAUGHT % "source").nodes[0].key)


def test_the_source_by_its_folder_is_the_source(place: Path) -> None:
    plain = plan(place, TEXT + "  - distill.logits: {tokens: 8}\n").nodes[0].key
    assert {plan(place, TAUGHT % name).nodes[0].key for name in ("source", "./student", str(place / "student"))} == {
        plain
    }


def test_an_id_is_an_id_whatever_folder_has_its_name(place: Path) -> None:
    steps = "  - distill.logits: {id: larger, tokens: 8}\n  - distill.logits: {teacher: larger, tokens: 8}\n"
    found = plan(place, TEXT + steps)
    assert found.nodes[1].inputs == {"teacher": "larger"}
    assert not found.models


@pytest.mark.parametrize("name", ["largr", "larger", "models/larger"])
def test_a_word_that_is_no_id_is_reported_of_both_possibilities(place: Path, name: str) -> None:
    (problem,) = reported(place, TAUGHT % name)
    assert problem.startswith(f'r.yaml:6:31 teacher: no earlier step is called "{name}"')
    assert "known: `source`; or a model of its own: zoo://NAME, a folder as ./folder, or hf://" in problem


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("./none", "none: no such model folder"),
        ("./texts.txt", "is one file, and pare opens folders"),
        ("zoo://none", "the zoo has no model `none`"),
        ("hf://org/name@main", "is not pinned to a commit"),
        ("s3://bucket/name", "is neither a zoo model, a folder nor a hub model"),
        ("3", "no earlier step is called 3"),
    ],
)
def test_what_is_no_model_is_reported_where_it_is_named(place: Path, name: str, why: str) -> None:
    (problem,) = reported(place, TAUGHT % name)
    assert problem.startswith("r.yaml:6:31 ")
    assert why in problem


def test_all_is_reported_at_once_also_of_a_recipe_that_does_not_read(place: Path) -> None:
    (place / "larger/model.safetensors").write_bytes(b"short")
    broken = TAUGHT % "./larger" + "  - distill.logits: {teacher: ./none, tokens: 8}\n"
    assert [problem.split()[0] for problem in reported(place, broken)] == ["r.yaml:6:31", "r.yaml:7:31"]
    both = reported(place, broken.replace("name: r", "name: a b"))
    assert ["no such model folder" in problem for problem in both].count(True) == 1
    assert any(problem.startswith("r.yaml:2:7") for problem in both)


def test_the_weights_of_one_of_the_hub_come_when_they_are_needed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, bool]] = []

    def fetch(repo: str, revision: str, *, weights: bool) -> Path:
        asked.append((repo, revision, weights))
        return place / "larger"

    monkeypatch.setattr("compress.sources.models.fetch_hub", fetch)
    name, cache = f"hf://org/name@{COMMIT}", Cache(place / "cache")
    found = plan(place, TAUGHT % name)
    assert found.nodes[0].lent == {"teacher": f"hf:org/name@{COMMIT}"}
    assert asked == [("org/name", COMMIT, False)]
    made = replace(found, nodes=tuple(replace(node, cached=True) for node in found.nodes))
    assert with_weights(made, cache, silent).models[name].remote
    assert not with_weights(found, cache, silent).models[name].remote
    assert asked[1:] == [("org/name", COMMIT, True)]


def test_one_whose_weights_are_no_numbers_teaches_nobody(place: Path) -> None:
    write_safetensors(place / "larger/model.safetensors", fill=b"\xff")
    found, cache = plan(place, TAUGHT % "./larger"), Cache(place / "cache")
    with pytest.raises(ModelError, match="not finite, before any stage") as caught:
        with_weights(found, cache, silent)
    assert caught.value.problems[0].place == str(place / "larger")
    made = replace(found, nodes=tuple(replace(node, cached=True) for node in found.nodes))
    assert with_weights(made, cache, silent).models  # which is not opened any more


# Held to what a recipe's model is held to


def test_a_teacher_is_checked_as_a_model_is(place: Path) -> None:
    teacher = place / "larger"
    (teacher / "tokenizer.json").unlink()
    config = {"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModelForCausalLM": "own.OwnForCausalLM"}}
    (teacher / "config.json").write_text(json.dumps({**config, "vocab_size": 3}))
    (teacher / "own.py").touch()
    as_model, as_teacher = (
        {problem.partition(" ")[2] for problem in reported(place, text)}
        for text in (TEXT.replace("student", "larger"), TAUGHT % "./larger")
    )
    assert len(as_model) > 1
    assert as_model < as_teacher  # whose blocks cannot be compared either


def test_one_of_another_task_packed_or_an_engine_is_refused(place: Path) -> None:
    pipeline(place / "generator")
    llama(place / "packed", quantization_config={"quant_method": "compressed-tensors", "num_bits": 8})
    engine = {"model": {"format": "openvino", "path": "", "kind": "LlamaForCausalLM"}}
    llama(place / "engine")
    manifest = {
        "schema": 1,
        "task": "text_generation",
        "components": engine,
        "settings": {"call": {}, "needs_pare": True},
    }
    (place / "engine/pare.json").write_text(json.dumps({**manifest, "lineage": []}))
    for name, why in (
        ("generator", "does text_to_image, and this model does text_generation"),
        ("packed", "is packed: the weights of `model` are compressed-tensors"),
        ("engine", "is an engine there | give the torch model"),
    ):
        found = reported(place, TAUGHT % f"./{name}")
        assert any(why in problem and problem.startswith("r.yaml:6:31") for problem in found), found


def test_its_weights_take_memory(place: Path) -> None:
    llama(place / "huge")
    language_model(place / "huge", (2_000, 3_000), real=False)
    llama_config = (place / "larger/config.json").read_text()
    for file, text in (
        ("config.json", llama_config),
        ("tokenizer.json", (place / "larger/tokenizer.json").read_text()),
    ):
        (place / "huge" / file).write_text(text)
    more = [plan(place, TAUGHT % name).nodes[0].memory_bytes for name in ("./huge", "source")]
    assert more[0] - more[1] == 4 * 2_000 * 3_000


# Whether it can teach


@pytest.mark.parametrize(
    ("vocabulary", "why"),
    [
        ("abcd", "it gives 4 logits (vocab_size), and the student 3"),
        ("acb", "its tokenizer is another: token 1 is 'c', and 'b' in the student's"),
        ("abx", "its tokenizer is another: token 2 is 'x', and 'c' in the student's"),
    ],
)
def test_a_teacher_of_texts_has_the_students_tokens(place: Path, vocabulary: str, why: str) -> None:
    llama(place / "other", vocabulary)
    found = reported(place, TAUGHT % "./other")
    assert any(why in problem and "vocab_size" in problem.partition("|")[2] for problem in found), found


def test_an_added_token_may_be_there_in_one_alone_and_means_one_thing(place: Path) -> None:
    def adding(folder: str, token: str, number: int) -> None:
        file = place / folder / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens": [{"content": token, "id": number}]}))

    for folder in ("student", "larger"):
        llama(place / folder, "abc", vocab_size=5)
    adding("larger", "<user>", 3)
    assert plan(place, TAUGHT % "./larger").nodes
    adding("student", "<system>", 3)
    assert "token 3 is '<user>', and '<system>' in the student's" in reported(place, TAUGHT % "./larger")[0]


def test_a_teacher_that_learned_fewer_positions_is_refused(place: Path) -> None:
    llama(
        place / "gpt2",
        architectures=["GPT2LMHeadModel"],
        model_type="gpt2",
        n_positions=4,
        n_layer=0,
        n_embd=8,
        n_head=2,
    )
    assert any(
        "it has 4 positions, and the rows have 8 tokens | tokens: 4" in p for p in reported(place, TAUGHT % "./gpt2")
    )


GENERATOR = {
    "unet": {"in_channels": 4, "sample_size": 8, "cross_attention_dim": 32, "block_out_channels": [8, 16], "addition_embed_type": None},
    "vae": {"latent_channels": 4, "scaling_factor": 0.18},
    "scheduler": {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 1e-4, "prediction_type": "epsilon"},
}  # fmt: skip


def generator(folder: Path, **changes: dict[str, Any]) -> Any:
    pipeline(folder)
    for part, config in GENERATOR.items():
        file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        file.write_text(json.dumps({**config, **changes.get(part, {})}))
    return describe(folder)


@pytest.mark.parametrize(
    ("changes", "why", "alone"),
    [
        ({"unet": {"in_channels": 16}}, "`unet` says in_channels 16, and the student's 4", False),
        ({"unet": {"sample_size": [16, 16]}}, "sample_size [16, 16], and the student's 8", False),
        ({"vae": {"latent_channels": 16}}, "`vae` says latent_channels 16, and the student's 4", False),
        ({"vae": {"scaling_factor": 0.13}}, "scaling_factor 0.13, and the student's 0.18", False),
        ({"scheduler": {"beta_start": 0.1}}, "beta_start 0.1, and the student's 0.0001", False),
        ({"scheduler": {"prediction_type": "flow_prediction"}}, "it goes along a flow", False),
        ({"unet": {"cross_attention_dim": 64}}, "cross_attention_dim 64, and the student's 32", True),
        ({"unet": {"addition_embed_type": "text_time"}}, "addition_embed_type text_time, and the student's None", True),
        ({"scheduler": {"prediction_type": "sample"}}, "prediction_type sample, and the student's epsilon", True),
        ({"unet": {"block_out_channels": [8, 16, 16]}}, "it has 7 stacks of blocks, and the student 5", True),
    ],
)
def test_a_teacher_of_images_has_the_students_latents(
    tmp_path: Path, changes: dict[str, dict[str, Any]], why: str, alone: bool
) -> None:
    """alone: for those that are given the teacher's very calls; along trajectories each has its own."""
    student, teacher = generator(tmp_path / "student"), generator(tmp_path / "teacher", **changes)
    assert any(why in found.message and found.fix for found in reported_misfits(student, teacher, None))
    walked = [found.message for found in trajectory_misfits(student, teacher, FewSteps())]
    assert any(why in message for message in walked) != alone


def test_a_teacher_of_images_may_be_larger_and_its_size_be_message_twice(tmp_path: Path) -> None:
    wide = {"sample_size": [8, 8], "block_out_channels": [32, 64], "cross_attention_dim": [32, 32]}
    student, teacher = generator(tmp_path / "student"), generator(tmp_path / "teacher", unet=wide)
    assert not [*reported_misfits(student, teacher, 3.0), *trajectory_misfits(student, teacher, FewSteps(guidance=3.0))]


@pytest.mark.parametrize(
    ("kind", "vae", "why"),
    [
        ("AutoencoderKL", {"scaling_factor": 0.13}, "scaling_factor 0.13, and the student's 0.18"),
        ("AutoencoderKL", {"latent_channels": 16}, "latent_channels 16, and the student's 4"),
        ("AutoencoderTiny", {"latent_channels": 16}, "latent_channels 16, and the student's 4"),
        ("AutoencoderTiny", {"scaling_factor": 1.0}, ""),
        ("AutoencoderTiny", {"block_out_channels": [8, 8, 8]}, "works at 3 sizes, and the student's at 2"),
        ("VQModel", {}, "is a VQModel, and this stage knows"),
        ("", {}, "has no `vae`"),
    ],
)
def test_the_teacher_of_a_decoder_decodes_the_students_latents(
    kind: str, vae: dict[str, Any], why: str, tmp_path: Path
) -> None:
    sides = [generator(tmp_path / n, vae={"block_out_channels": [8, 8], **more}) for n, more in (("a", {}), ("b", vae))]
    student, teacher = sides[0], sides[1].becoming({"vae": kind}) if kind else sides[1]
    if not kind:
        teacher = replace(teacher, components={n: c for n, c in teacher.components.items() if n != "vae"})
    stage = find_stage("distill.decoder")
    found = [one.message for one in stage.unfit(student, stage.params(), {"teacher": teacher})]
    assert [why in message for message in found] == [True] * bool(why)
    assert not list(stage.unfit(student, stage.params(), {"teacher": student}))


@pytest.mark.parametrize(
    ("own", "asked", "why"),
    [
        (1.0, {"guidance": 3.0}, "guidance 3 would guide it once more"),
        (1.0, {"negative_prompt": "ugly"}, "nothing leads away from a negative prompt"),
        (1.0, {}, ""),
        (1.0, {"guidance": 1.0}, ""),
        (3.0, {"guidance": 5.0}, ""),
        (None, {"guidance": 5.0}, ""),
    ],
)
def test_guidance_that_is_folded_in_already_is_not_asked_for_again(
    tmp_path: Path, own: float | None, asked: dict[str, Any], why: str
) -> None:
    source = generator(tmp_path / "model")
    teacher = source if own is None else source.calling(guidance_scale=own)
    for name, needed in (("distill.steps", {"steps": 2}), ("distill.guidance", {})):
        stage = find_stage(name)
        found = [one.message for one in stage.unfit(source, stage.params(**needed, **asked), {"teacher": teacher})]
        assert [why in message for message in found] == [True] * bool(why)


def test_a_student_of_one_step_teaches_no_guidance_to_the_next(tmp_path: Path) -> None:
    steps = "  - distill.steps: {steps: 4, guidance: 3.0}\n  - distill.steps: {steps: 2, guidance: 3.0, teacher: %s}\n"
    data = "schema: 1\nname: r\nmodel: zoo://digits-diffusion\ndata: {train: zoo://digits/train}\nstages:\n"
    assert len(plan(tmp_path, data + steps % "source").nodes) == 2
    (problem,) = reported(tmp_path, data + steps % "distill.steps")
    assert problem.startswith("r.yaml:7:55 distill.steps: its teacher: its guidance is folded in already")
    assert problem.endswith("leave `guidance` out, or give a teacher that is still guided")


# Where else it shows


def test_plans_and_lineages_name_it(place: Path) -> None:
    found = plan(place, TAUGHT % "./larger")
    (node,) = found.nodes
    assert f"teacher: {place / 'larger'}" in plan_text(found)
    assert plan_dict(found)["nodes"][0]["inputs"] == {"teacher": str(place / "larger")}
    assert with_lineage(node, node.expected)[-1].to_json()["inputs"] == node.lent
    plain = plan(place, TAUGHT % "source")
    assert "teacher" not in plan_text(plain)
    assert "inputs" not in with_lineage(plain.nodes[0], node.expected)[-1].to_json()


def test_it_is_found_from_wherever_a_recipe_is_changed_extended_or_sent(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(place / "cache")
    wanted = plan(place, TAUGHT % "./larger").nodes[0].key
    monkeypatch.chdir(place)
    base = plan(place, TAUGHT % "source").recipe
    changes = {"stages.0.distill.logits.teacher": "./larger"}
    (place / "below").mkdir()
    (place / "below/r.yaml").write_text("extends: ../top.yaml\n")
    (place / "top.yaml").write_text(TAUGHT % "./larger")
    plans = [
        compress.plan(base.with_(changes), cache=cache.root),
        compress.plan("r.yaml", ["stages.0.distill.logits.teacher=./larger"], cache=cache.root),
        compress.plan("below/r.yaml", cache=cache.root),
    ]
    refs = [ref for found in plans for ref in node_refs(found)]
    monkeypatch.chdir(place / "below")
    assert {found.nodes[0].key for found in plans} == {wanted}
    assert {_plan_of(ref, cache).nodes[0].key for ref in refs} == {wanted}


def test_a_folder_given_in_python_starts_at_the_current_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Plan] = []
    monkeypatch.setattr(
        "compress.execution.execute.execute", lambda plan, cache, emit: seen.append(plan) or [plan.nodes[0]]
    )
    monkeypatch.setattr("compress.planning.nodes.Node.artifact", None, raising=False)
    monkeypatch.chdir(place)
    for teacher in (Path("larger"), "./larger"):
        compress.apply(
            "distill.logits", "./student", teacher=teacher, tokens=8, train="texts.txt", cache=place / "cache"
        )
    assert len({found.nodes[0].key for found in seen}) == 1
    assert seen[0].nodes[0].lent


def no_hub(repo: str, revision: str, *, weights: bool) -> Path:
    """In the place of the hub's own client, which tries for half a minute."""
    raise ModelError("cannot be fetched", place=repo, fix="go online once")


def test_pinning_reads_adapters_too_and_keeps_the_ends_of_lines(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = place / "r.yaml"
    text = "schema: 1\r\nname: r\r\nmodel: ./model\r\nadapter: [hf://org/lora, {path: hf://org/style@main, scale: 0.5}]\r\n"
    file.write_bytes(text.encode())
    assert hub_references(file) == ("hf://org/lora", "hf://org/style@main")
    monkeypatch.setattr("compress.commands.pin.pin_hub", lambda name: f"{name.partition('@')[0]}@{COMMIT}")
    monkeypatch.setattr("compress.adapters.lora.fetch_hub", no_hub)
    monkeypatch.setattr("sys.argv", ["pare", "check", "--pin", str(file)])
    with pytest.raises(SystemExit):
        main()
    assert file.read_bytes().decode() == text.replace("lora", f"lora@{COMMIT}").replace("@main", f"@{COMMIT}")


def test_pinning_reads_what_stages_are_given_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, text = place / "r.yaml", TAUGHT % "hf://org/name@main"
    file.write_text(text + "  - distill.logits: {teacher: hf://org/name}\n  - none.such: {teacher: hf://org/x}\n")
    assert hub_references(file) == ("hf://org/name@main", "hf://org/name")
    monkeypatch.setattr("compress.commands.pin.pin_hub", lambda name: f"{name.partition('@')[0]}@{COMMIT}")
    monkeypatch.setattr("compress.sources.models.fetch_hub", no_hub)
    monkeypatch.setattr("sys.argv", ["pare", "check", "--pin", str(file)])
    with pytest.raises(SystemExit):
        main()
    assert file.read_text().count(f"teacher: hf://org/name@{COMMIT}") == 2
    (step, *_) = read_text(TAUGHT % f"hf://org/name@{COMMIT}", "r.yaml")[0].stages
    assert step.inputs == {"teacher": f"hf://org/name@{COMMIT}"}
