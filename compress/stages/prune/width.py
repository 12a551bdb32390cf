"""Make a model narrower: fewer channels, feed-forward neurons or heads, the least important ones going first.

Use it when a model is wider than its task needs; win the quality back with `distill.features` or `distill.logits`. The result
is a stock checkpoint with a smaller config. A ratio is snapped to what the config can say (whole norm groups and heads) and to
multiples of `align`, which kernels like; the plan prints what was asked for against what is granted. Which parts a model has:
`channels` for a UNet or a VAE; `ffn`, `heads` and `hidden` for a language model, as far as its config has a field for them; `ffn` for
Sana's denoiser and for CLIP text encoders. Of a mixture `ffn` is the width of every expert, and `experts` takes out whole ones: of each
block those that its router sends the fewest tokens of the calibration data.
Source: Fang et al., "DepGraph: Towards Any Structural Pruning" (2023), through torch-pruning.

    - prune.width: {ratio: 0.25}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compress.artifact import LANGUAGE_MODEL, Artifact, derive, rewritten, write_manifest
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.machine.devices import CPU
from compress.machine.library_classes import divisions_of
from compress.model.families import Cut, cut_width
from compress.params import Params, Share

if TYPE_CHECKING:
    import torch

    from compress.data.items import Item
    from compress.opening.models import OpenModel

NORM_ITEMS = 8  # calibration items on which norms are compared with those of before


class PruneWidth(Params):
    ratio: Share = Field(0.25, description="share of each width to remove")
    parts: tuple[Literal["ffn", "heads", "experts", "hidden", "channels"], ...] = Field(
        (), description="which widths; none named: channels, or ffn and heads, as far as the model's config has them"
    )
    importance: Literal["magnitude", "taylor", "activation"] = Field(
        "magnitude", description="what a weight is worth; the two others need calibration data, as experts always do"
    )
    samples: int = Field(32, ge=1, description="calibration items that taylor, activation and experts look at")
    align: int = Field(8, ge=1, description="widths are multiples of this")
    components: tuple[str, ...] = Field((), description="what to cut; none named: the denoiser, or the language model")


def forecast(artifact: Artifact, params: PruneWidth) -> Forecast:
    cuts = {name: _cut(artifact, name, params) for name in artifact.choose(params.components, bool)}
    reported = "; ".join(f"{name}: {cut.reported(params.ratio)}" for name, cut in cuts.items())
    far = tuple(f"{name}: {much}" for name, cut in cuts.items() if (much := cut.far(params.ratio)))
    return Forecast({name: cut.config for name, cut in cuts.items()}, reported=reported, warnings=far)


@stage(
    version=3,
    params=PruneWidth,
    formats={"torch": "torch"},
    effects=("weights",),
    carries=True,
    reproducible="bytes",
    bound_to=("isa",),  # worth is a sum of rounded numbers: another processor may rank two channels the other way
    libraries=("torch_pruning", "torch", "transformers", "diffusers"),
    data=lambda params: ("calibration",) if _sees_data(params) else (),
    forecast=forecast,
)
def run(artifact: Artifact, params: PruneWidth, context: Context) -> None:
    from compress.adapters.keeping import narrowing, recut
    from compress.algorithms.coupled_units import cut_state
    from compress.algorithms.dependency_groups import find_groups, parameter_shapes
    from compress.algorithms.expert_groups import sent
    from compress.algorithms.norms import keep_statistics
    from compress.algorithms.weight_importance import of_units
    from compress.engines.torch.runtime import blank, save_component, shares_kept
    from compress.opening import open_task

    wanted = artifact.choose(params.components, bool)
    made = derive(artifact, context.out, without=rewritten(artifact, wanted), link=context.link)
    task = open_task(artifact, context.opening.of("float32"))
    for name in context.progress(wanted, "components", len(wanted)):
        cut, module = _cut(artifact, name, params), task.component(name)
        smaller = blank(module, cut.config)
        heads = next((g.before for g in cut.granted if g.field == "num_key_value_heads" and g.after < g.before), 0)
        example = _example(task, name)
        groups = find_groups(module, example, parameter_shapes(smaller), heads)
        weight_importance = _saliency(task, name, params, context)
        tokens = sent(module, groups, _calls(task, name, params, context, params.samples))
        kept = [g.choose(tokens[g.router] if g.router else of_units(g, weight_importance)) for g in groups]
        smaller.load_state_dict(cut_state(module.state_dict(), groups, kept))
        keep_statistics(module, smaller, groups, kept, _calls(task, name, params, context, NORM_ITEMS))
        reported = cut.reported(params.ratio)
        context.note(
            reported, component=name, granted=reported, groups=len(groups), **shares_kept(module, smaller, example)
        )
        save_component(smaller, artifact.folder(name), made.folder(name))
        made = recut(made, name, tuple(module.state_dict()), narrowing(groups, kept), context)
    write_manifest(made)


def _sees_data(params: PruneWidth) -> bool:
    return params.importance != "magnitude" or "experts" in params.parts


def _cut(artifact: Artifact, name: str, params: PruneWidth) -> Cut:
    kind, config = artifact.components[name].kind, artifact.config(name)
    divisions = divisions_of(str(config.get("model_type", "")))
    return cut_width(kind, config, params.ratio, params.parts, params.align, divisions)


def _example(task: OpenModel, name: str) -> Mapping[str, Any]:
    """One call, to follow what feeds what: any would do."""
    return next(_recorded(task, name, task.examples[:1], 0))


def _calls(task: OpenModel, name: str, params: PruneWidth, context: Context, count: int) -> Iterator[Mapping[str, Any]]:
    """What a component is given while the model runs on calibration items, or on examples where there is no such data."""
    asked = _sees_data(params)
    items = context.data["calibration"].first(count) if asked else task.examples[:count]
    return _recorded(task, name, items, context.seed)


def _recorded(task: OpenModel, name: str, items: Sequence[Item], seed: int) -> Iterator[Mapping[str, Any]]:
    """A component's calls, as its `forward` takes them: a VAE, of which a pipeline calls but one half, sees what that generated."""
    calls = (call for _, call in task.calls_of((name,), items, seed, **task.brief))
    if task.function_of(name) == "forward":
        return calls
    vae: Any = task.component(name)
    return ({"sample": vae.decode(next(iter(call.values()))).sample.detach()} for call in calls)


def _saliency(task: OpenModel, name: str, params: PruneWidth, context: Context) -> dict[str, torch.Tensor]:
    from compress.algorithms import weight_importance

    module = task.component(name)
    if params.importance == "magnitude":
        return weight_importance.magnitude(module)
    calls = context.progress(_calls(task, name, params, context, params.samples), f"{params.importance} calls", 0)
    if params.importance == "activation":
        return weight_importance.activation(module, calls)
    loss_of = _language_loss(module) if name == LANGUAGE_MODEL else _noise_loss(module, context.seed)
    return weight_importance.taylor(module, calls, loss_of)


def _language_loss(module: torch.nn.Module) -> Callable[[Mapping[str, Any]], Any]:
    return lambda call: module(**call, labels=call["input_ids"]).loss


def _noise_loss(module: torch.nn.Module, seed: int) -> Callable[[Mapping[str, Any]], Any]:
    """The output's projection on noise, whose squared gradient tells, on average, how far the whole output moves."""
    import torch

    from compress.engines.torch.runtime import first_tensor

    generator = torch.Generator(CPU).manual_seed(seed)

    def loss(call: Mapping[str, Any]) -> Any:
        output = first_tensor(module(**call))
        noise = torch.randn(output.shape, generator=generator, device=CPU).to(output.device)
        return (output * noise).sum() / output.numel() ** 0.5

    return loss
