"""Recipes from text: what they become, and what they say when they are wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jsonschema
import pytest
import yaml
from pydantic import Field

import compress.recipe.metrics_and_gates
import compress.recipe.schema
import compress.recipe.steps
from compress.errors import RecipeError, UserError, near
from compress.params import Params, Share
from compress.recipe.reading import model_reference, read_recipes, read_text
from compress.recipe.yaml_tree import MAX_BYTES, parse_tree

HEAD = "schema: 1\nname: demo\nmodel: zoo://tiny\n"


class Cut(Params):
    """Parameters of the stage that only these tests know."""

    ratio: Share = Field(0.5, description="share of the width to remove")
    bits: int = Field(8, ge=2, le=8, description="bits of a weight")
    kind: Literal["block", "row"] = Field("row", description="what shares one scale")
    layers: tuple[int, ...] = Field((), description="layers to leave alone")


class Kernel(Params):
    degree: int = Field(3, ge=1, description="degree of the kernel's polynomial")


STAGES = {"demo.cut": Cut, "demo.turn": Params}
METRICS = {"kid": Kernel, "latency": Params, "size": Params}


@pytest.fixture(autouse=True)
def demo_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(names: dict[str, type[Params]], what: str, name: str) -> SimpleNamespace:
        if name not in names:
            raise UserError(f"no {what} is called `{name}`", fix=near(name, tuple(names)))
        return SimpleNamespace(params=names[name], doc="Cut it.", title=name, inputs=("teacher",))

    for module in (compress.recipe.steps, compress.recipe.schema):
        monkeypatch.setattr(module, "find_stage", lambda name: find(STAGES, "stage", name))
    for module in (compress.recipe.metrics_and_gates, compress.recipe.schema):
        monkeypatch.setattr(module, "find_metric", lambda name: find(METRICS, "metric", name))
        monkeypatch.setattr(module, "metric_names", lambda: tuple(METRICS))
    monkeypatch.setattr(compress.recipe.schema, "stage_names", lambda: tuple(STAGES))


def wrong(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read_text(text, "r.yaml", overrides)
    return [f"{p.place} {p.message}" for p in caught.value.problems]


def test_a_full_recipe_has_every_default_filled_in() -> None:
    text = HEAD + (
        "stages:\n- demo.cut: {ratio: 0.25}\n- demo.turn\n"
        "- demo.cut: {id: late, from: demo.cut, teacher: source, layers: [1, 2]}\n"
        "evaluate:\n  baseline: {dtype: float32}\n  metrics: [kid, latency: {}]\ngates:\n  kid: {within: 1%}\n"
    )
    (recipe,) = read_text(text, "r.yaml")
    first, second, third = recipe.stages
    assert (recipe.name, recipe.model, recipe.seed, recipe.trust_remote_code) == ("demo", "zoo://tiny", 0, False)
    assert (first.id, first.after, first.params) == ("demo.cut", "source", Cut(ratio=0.25))
    assert (second.id, second.after) == ("demo.turn", "demo.cut")
    assert (third.id, third.after, dict(third.inputs)) == ("late", "demo.cut", {"teacher": "source"})
    assert third.params.layers == (1, 2)  # type: ignore[attr-defined]
    assert recipe.evaluate.metrics == {"kid": {"degree": 3}, "latency": {}}
    assert recipe.evaluate.baseline.dtype == "float32"
    assert recipe.gates["kid"].within == "1%"
    assert recipe.source == text
    assert recipe.file == "r.yaml"


def test_places_point_at_values_and_at_the_keys_of_sections() -> None:
    text = (
        HEAD
        + "stages:\n  - demo.cut:\n      ratio: 0.3\nevaluate: {metrics: [size, kid: {degree: 2}]}\ngates:\n  kid: {within: 2}\n"
    )
    place = read_text(text, "r.yaml")[0].place
    assert place["model"] == "r.yaml:3:8"
    assert place["stages.0"] == "r.yaml:5:5"
    assert place["stages.0.ratio"] == "r.yaml:6:14"
    assert place["evaluate.metrics.1"] == "r.yaml:7:28"
    assert place["evaluate.metrics.1.degree"] == "r.yaml:7:42"
    assert place["gates.kid"] == "r.yaml:9:3"
    assert read_text(text, "r.yaml")[0].stages[0].place == "r.yaml:5:5"


def test_components_belong_to_stages_that_have_such_a_parameter() -> None:
    assert wrong(HEAD + "stages: [demo.turn: {components: [unet]}]") == [
        "r.yaml:4:22 demo.turn.components: unknown key"
    ]


def test_repeated_stages_are_numbered_around_explicit_ids() -> None:
    (recipe,) = read_text(HEAD + "stages: [demo.cut, demo.cut, demo.turn: {id: demo.cut-3}, demo.cut]", "r.yaml")
    assert [s.id for s in recipe.stages] == ["demo.cut", "demo.cut-2", "demo.cut-3", "demo.cut-4"]
    assert "already taken" in wrong(HEAD + "stages: [demo.cut: {id: a}, demo.turn: {id: a}]")[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("~", None),
        ("007", 7),
        ("0x1f", 31),
        ("'1'", "1"),
        ("1%", "1%"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = parse_tree(f"a: {text}", "r.yaml").fields["a"].value
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml:1:1 the file is empty"),
        ("- a", "r.yaml:1:1 a recipe is a mapping"),
        ("a: 1\nb: 2\na: 3", "r.yaml:3:1 `a` is given twice; first at 1:1"),
        ("a:\n\tb: 1", "r.yaml:2:1 a tab indents"),
        ("a: !!python/object:os.system x", "r.yaml:1:4 tag `tag:yaml.org,2002:python/object:os.system`"),
        ("a: !mine x", "r.yaml:1:4 tag `!mine`"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1 a second document"),
        ("a: &a [*a]", "r.yaml:1:8 alias `*a` names no anchor"),
        ("<<: {a: 1}", "r.yaml:1:1 merge keys"),
        ("? [a]\n: 1", "r.yaml:1:3 a key must be plain text"),
        ("a: .inf", "r.yaml:1:4 .inf is not a finite number"),
        ("a: 1e999", "r.yaml:1:4 1e999 is not a finite number"),
        ("a: " + "[" * 5000, "nested deeper than"),
        ("a: \x00", "characters that YAML does not allow"),
        ("a: ${", "`schema` is missing"),
        ("a: " + "x" * MAX_BYTES, "larger than"),
    ],
)
def test_text_that_is_no_recipe(text: str, message: str) -> None:
    assert message in wrong(text)[0]


def test_aliases_work_and_bombs_do_not_go_off() -> None:
    (recipe,) = read_text(HEAD + "stages: [demo.cut: &p {ratio: 0.1}, demo.cut: *p]", "r.yaml")
    assert recipe.stages[0].params == recipe.stages[1].params
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "once aliases are expanded" in wrong("a0: &a0 x\n" + "\n".join(levels))[0]
    deep = "a0: &a0 x\n" + "\n".join(f"a{n}: &a{n} [[[[[*a{n - 1}]]]]]" for n in range(1, 50))
    assert "nested deeper" in wrong(deep)[0]
    long = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]"
    assert "once aliases are expanded" in wrong(long)[0]


def test_values_are_taken_strictly() -> None:
    assert wrong(HEAD.replace("demo", "demo\nseed: '3'"))[0] == 'r.yaml:3:7 seed must be a whole number, not "3"'
    assert "must be a whole number, not 4.5" in wrong(HEAD + "stages: [demo.cut: {bits: 4.5}]")[0]
    assert "must be a whole number, not true" in wrong(HEAD + "stages: [demo.cut: {bits: true}]")[0]


@pytest.mark.parametrize(
    ("model", "sound"),
    [
        ("zoo://tiny", True),
        ("./folder", True),
        ("../folder", True),
        ("/folder", True),
        ("hf://org/name@" + "0a" * 20, True),
        ("hf://org/name", False),
        ("hf://org/name@main", False),
        ("org/name", False),
        ("zoo://../../etc", False),
    ],
)
def test_models_are_zoo_names_folders_or_pinned_commits(model: str, sound: bool) -> None:
    text = HEAD.replace("zoo://tiny", model)
    if sound:
        assert read_text(text, "r.yaml")[0].model == model
    else:
        assert wrong(text)[0].startswith("r.yaml:3:8 model ")


def test_a_later_schema_is_refused_without_further_complaints() -> None:
    assert wrong("schema: 2\nmodell: x") == ["r.yaml:1:9 schema 2 is a schema from the future: this pare reads 1"]


def test_extends_merges_maps_and_replaces_lists(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        HEAD + "stages: [demo.cut, demo.turn]\nevaluate: {samples: 8, baseline: {steps: 5}}\n"
    )
    (tmp_path / "top.yaml").write_text(
        "extends: base.yaml\nname: top\nstages: [demo.turn]\nevaluate: {baseline: {guidance: 2}}\n"
    )
    (recipe,) = read_recipes(tmp_path / "top.yaml")
    assert recipe.name == "top"
    assert [s.stage for s in recipe.stages] == ["demo.turn"]
    assert (recipe.evaluate.samples, recipe.evaluate.baseline.steps, recipe.evaluate.baseline.guidance) == (8, 5, 2.0)
    assert recipe.place["evaluate.samples"].startswith(str(tmp_path / "base.yaml"))
    (tmp_path / "base.yaml").write_text("extends: top.yaml\n")
    with pytest.raises(RecipeError, match=r"in a circle: top\.yaml → base\.yaml → top\.yaml"):
        read_recipes(tmp_path / "top.yaml")


def test_an_absent_file_is_a_located_problem(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_recipes(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=r"r.yaml:1:10: .*cannot be read"):
        read_text("extends: none.yaml", str(tmp_path / "r.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(RecipeError, match="not UTF-8"):
        read_recipes(tmp_path / "latin.yaml")


def test_variables_keep_their_type_and_fill_text() -> None:
    text = (
        HEAD.replace("demo", "demo-${ratio}")
        + "vars: {ratio: 0.25, l: [1]}\nstages:\n- demo.cut: {ratio: '${ratio}', layers: '${l}'}\n"
    )
    (recipe,) = read_text(text, "r.yaml")
    assert recipe.name == "demo-0.25"
    assert recipe.stages[0].params == Cut(ratio=0.25, layers=(1,))
    assert wrong(text.replace("'${ratio}'", "'${ration}'")) == ["r.yaml:6:21 no variable is called `ration`"]
    assert "refers to a variable" in wrong(HEAD + "vars: {a: 1, b: '${a}'}")[0]
    bomb = HEAD + f"vars: {{a: [{'1, ' * 200}]}}\ndata: [{', '.join(['${a}'.join(chr(34) * 2)] * 200)}]"
    assert "once variables are filled in" in wrong(bomb)[0]


def test_a_matrix_makes_one_recipe_per_combination() -> None:
    text = (
        HEAD
        + "matrix: {ratio: [0.1, 0.2], kind: [row, block]}\nstages:\n- demo.cut: {ratio: '${ratio}', kind: '${kind}'}\n"
    )
    recipes = read_text(text, "r.yaml")
    assert [r.name for r in recipes][:2] == ["demo-ratio-0.1-kind-row", "demo-ratio-0.1-kind-block"]
    assert {(r.stages[0].params.ratio, r.stages[0].params.kind) for r in recipes} == {  # type: ignore[attr-defined]
        (0.1, "row"), (0.1, "block"), (0.2, "row"), (0.2, "block")
    }  # fmt: skip
    assert wrong(HEAD + "matrix: {a: [1]}") == ["r.yaml:4:10 matrix.a is used nowhere"]
    assert "must be a list" in wrong(HEAD + "matrix: {a: 1}")[0]
    assert "share the name" in wrong(HEAD + "matrix: {seed: [1, '1']}\nseed: ${seed}")[0]
    many = HEAD + "matrix:\n" + "".join(f"  v{n}: [0, 1, 2, 3]\n" for n in range(5))
    assert "makes 1024 recipes" in wrong(many)[0]


def test_overrides_reach_parameters_sections_and_new_keys() -> None:
    text = HEAD + "stages: [demo.turn, demo.cut, demo.cut: {bits: 4}]\nevaluate: {metrics: [size, kid]}\n"
    sets = (
        "stages.1.ratio=1e-1",
        "stages.2.bits=6",
        "seed=7",
        "evaluate.metrics.1.degree=2",
        "data.train=zoo://tiny/train",
    )
    (recipe,) = read_text(text, "r.yaml", sets)
    assert [s.params for s in recipe.stages[1:]] == [Cut(ratio=0.1), Cut(bits=6)]
    assert recipe.seed == 7
    assert recipe.evaluate.metrics["kid"] == {"degree": 2}
    assert recipe.data.train == "zoo://tiny/train"
    assert recipe.place["stages.1.ratio"] == "--set stages.1.ratio"
    bad = wrong(text, "stages.9.x=1", "seed", "name.first=x", "stages.1.ratio=3", "sede=1", "seed=[")
    assert all(line.startswith("--set ") for line in bad)
    assert len(bad) == 6
    assert "--set stages.1.ratio demo.cut.ratio must be less than 1, not 3" in bad
    assert "--set sede sede: unknown key" in bad


def test_pinning_reads_the_model_of_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nmodel: hf://org/name\n")
    assert model_reference(path) == "hf://org/name"
    path.write_text("extends: other.yaml\n")
    with pytest.raises(RecipeError, match="names no model"):
        model_reference(path)


BAD = {
    "top": "schema: 1\nname: a b\nmodle: zoo://tiny\nseed: -1\ndata: {trian: x}\n",
    "stages": HEAD
    + """stages:
  - demo.cat: {}
  - demo.cut: {ratio: 1.5, bit: 4, kind: rwo}
  - demo.cut:
    ratio: 0.5
  - demo.turn: {form: demo.cut, teacher: nobody}
  - demo.turn: {from: demo.cut-9, id: source, components: []}
  - demo.cut: {layers: [1, x]}
  - 7
""",
    "evaluate": HEAD
    + """evaluate:
  samples: 1
  baseline: {dtype: int8, stepss: 4}
  metrics: [kidd, kid: {degre: 2}, size, size]
gates:
  kid: {within: [1]}
  latency: {speedup: 0}
  fidelity: {speedup: 2, maximum: 3}
""",
    "yaml": "a: [1, 2\nb: 3\n",
    "flow": "stages: [{demo.cut: {ratio: ${r}}}]\n",
}


def test_error_texts_are_the_golden_ones(golden: Any) -> None:
    message = []
    for name, text in BAD.items():
        with pytest.raises(RecipeError) as caught:
            read_text(text, f"{name}.yaml")
        message.append(str(caught.value.args[0]))
    found = "\n\n".join(message) + "\n"
    assert found == golden("recipe_errors.txt", found)


def test_the_schema_takes_what_reading_takes() -> None:
    check = jsonschema.Draft202012Validator(json.loads(json.dumps(compress.recipe.schema.recipe_schema())))
    jsonschema.Draft202012Validator.check_schema(check.schema)
    good = HEAD + (
        "vars: {r: 0.1}\nstages: [demo.turn, demo.cut: {ratio: '${r}', id: x, layers: [1]}, demo.cut: ]\n"
        "evaluate: {baseline: {steps: 4}, metrics: [size, kid: {degree: 2}]}\ngates: {kid: {within: 1%}, size: {speedup: 2}}"
    )
    read_text(good, "r.yaml")
    check.validate(parse_tree(good, "r.yaml").plain())
    for bad in (
        "stages: [demo.cut: {bit: 1}]",
        "stages: [demo.cat]",
        "gates: {kid: {within: 1, speedup: 2}}",
        "seed: x",
    ):
        assert not check.is_valid(parse_tree(HEAD + bad, "r.yaml").plain()), bad
    assert not check.is_valid(yaml.safe_load("schema: 1\nname: a"))


def test_reading_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'diffusers', 'openvino', 'nncf', 'scipy', 'pandas', 'PIL'}"
    code = f"import sys, compress.recipe.reading, compress.recipe.schema; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "stages: [" + "demo.turn, " * 15_000 + "]",
        HEAD + "data: {" + ", ".join(f"k{n}: 1" for n in range(9_000)) + "}",
        HEAD + "data: {train: '" + "${" * 400_000 + "'}\nseed: -1",
    ],
)
@pytest.mark.timeout(20)
def test_absurd_recipes_are_refused_soon(text: str) -> None:
    assert wrong(text)
