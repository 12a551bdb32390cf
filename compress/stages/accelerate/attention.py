"""Choose by what a denoiser's or a language model's attention is computed: the fastest way here, measured, or one by name.

torch chooses among its kernels by rules of its own; `math`, `flash`, `efficient` and `cudnn` let one of them compute all attention of the main
component. `flash_attn` and `sage` are packages of their own (flash-attn, sageattention), for GPUs, and for the models whose classes take them.
The stage tries each on a real call, leaves out what cannot compute it or gives other numbers, and `fastest` times the rest in turns; where
torch's own choice is as fast, the model stays as it was. The numbers are the same but for rounding; `sage`, which multiplies in few bits, is
never chosen and has to be named. The model's files stay as they are. Put it behind what changes the model, and measure on the machine that it
is for.
Source: torch's `sdpa_kernel`; diffusers' `attention_backend`; transformers' `attn_implementation`.

    - accelerate.attention: {}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compress.artifact import Artifact, derive, write_manifest
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.errors import StageFailed
from compress.machine.devices import kind_of
from compress.model.attention_backends import KERNELS, NATIVE, ROUNDING, Backend, candidates, on_gpus_alone, unattended
from compress.model.hook_settings import ATTENTION, hooked, unhookable, unhooked
from compress.params import Params
from compress.stages.accelerate import leave_hooked

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

FASTEST: Literal["fastest"] = "fastest"
# Most difference of a backend that computes the same, as a share of what a model gives: in float32, and in fewer bits.
APART = {"torch.float32": 1e-3}
APART_IN_HALF = 0.03
BLOCKS = 12


class Attention(Params):
    backend: Backend | Literal["fastest"] = Field(
        FASTEST,
        description="by what attention is computed; fastest tries and times them here; native is torch's own choice",
    )


def refuse(artifact: Artifact, params: Attention) -> str:
    return unhookable(artifact, ATTENTION) or unattended(artifact, params.backend)


def misplaced(artifact: Artifact, params: Attention, device: str) -> str:
    if not on_gpus_alone(params.backend) or kind_of(device) == "cuda":
        return ""
    return f"attention by {params.backend} has kernels for NVIDIA GPUs, and the device is {device}"


def forecast(artifact: Artifact, params: Attention) -> Forecast:
    """What the fastest way is only the work finds out: a hook is planned for, so that what goes with none is refused before it runs."""
    if params.backend == NATIVE:
        return Forecast(reported=f"`{artifact.main}`: attention as torch chooses, as it was")
    kept, way = "lossy" if params.backend in ROUNDING else "exact", params.backend
    shown, needs = ("whichever way is fastest here", "may need") if way == FASTEST else (way, "needs")
    settings = hooked(artifact, ATTENTION, (), backend=way).settings
    return Forecast(settings=settings, reported=f"`{artifact.main}`: attention by {shown} ({kept}); that {needs} pare")


@stage(
    version=1,
    params=Attention,
    formats={"torch": "torch"},
    effects=("settings",),
    reproducible="behaviour",  # two ways may be equally fast
    bound_to=("processors",),
    libraries=("diffusers", "torch", "transformers"),
    refuse=refuse,
    misplaced=misplaced,
    forecast=forecast,
)
def run(artifact: Artifact, params: Attention, context: Context) -> None:
    asked = (
        candidates(artifact, kind_of(context.opening.device)) if params.backend == FASTEST else (NATIVE, params.backend)
    )
    found, why = _chosen(artifact, tuple(dict.fromkeys(asked)), context)
    if params.backend not in (FASTEST, NATIVE):
        if params.backend in why:
            raise StageFailed(
                f"attention by {params.backend}: {why[params.backend]}", fix="give another backend, or fastest"
            )
        found = params.backend
    if found == NATIVE:
        write_manifest(derive(artifact, context.out, link=context.link))
        return
    leave_hooked(artifact, ATTENTION, context, backend=found)


def _chosen(artifact: Artifact, backends: tuple[str, ...], context: Context) -> tuple[str, dict[str, str]]:
    """The fastest of the backends on a real call, torch's own choice where that may be as fast; and why others cannot take it."""
    import torch

    from compress.algorithms.tensors import finish
    from compress.building.racing import fastest, race, undecided
    from compress.machine.turns import turn
    from compress.opening import open_task
    from compress.opening.attention import attending

    opened = open_task(unhooked(artifact), context.opening)
    module = opened.component(artifact.main)
    call = next(
        given
        for _, given in opened.calls_of([artifact.main], opened.examples[:1], context.seed, batch=1, **opened.brief)
    )
    device = next(module.parameters()).device

    def calling(backend: str) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad(), attending(module, backend):
                result = module(**call)
            finish(device)
            return result

        return run

    ways = {one: calling(one) for one in backends}
    why = _unable(ways, module)
    able = {one: way for one, way in ways.items() if one not in why}
    with turn(context.opening.device, context.emit):
        paces = race(able, BLOCKS)
    found = NATIVE if NATIVE in undecided(paces) else fastest(paces)
    times = {one: round(1000 * pace.seconds, 4) for one, pace in paces.items()}
    message = ", ".join(f"{one} {taken:.3g} ms" for one, taken in times.items())
    left = "".join(f"; not {one}: {reason}" for one, reason in why.items())
    context.note(f"a call of `{artifact.main}`: {message}{left}", milliseconds=times, chosen=found, left_out=why)
    return found, why


def _unable(ways: dict[str, Any], module: torch.nn.Module) -> dict[str, str]:
    """By backend, why it cannot compute the call, or what else it gives; torch's own choice, which is compared with, is never among them."""
    from compress.opening.attention import asks_torch

    usual, why = _first(ways[NATIVE]()), dict[str, str]()
    if not asks_torch(ways[NATIVE]):
        why = {
            one: f"{type(module).__name__} computes attention by itself, and asks torch for none"
            for one in ways
            if one in KERNELS
        }
    most = APART.get(str(next(module.parameters()).dtype), APART_IN_HALF)
    for one, way in ways.items():
        if one in why:
            continue
        try:
            given = _first(way())
        except Exception as error:  # a kernel or a package refuses in ways of its own
            why[one] = str(error).partition("\n")[0]
            continue
        apart = float((given - usual).norm() / usual.norm())
        if not apart <= (APART_IN_HALF if one in ROUNDING else most):
            why[one] = f"it gives other numbers, by {apart:.1%}"
    return why


def _first(result: Any) -> torch.Tensor:
    """The first tensor of what a module gave, float32."""
    found: torch.Tensor = (result if isinstance(result, tuple) else tuple(result.values()))[0]
    return found.float()
