"""What share of each part of a pipeline will be how wide, from headers and the recipe alone: for packers of linear layers pass over
convolutions, and a part that no stage names stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.artifact import Artifact
from compress.files.safetensors_headers import read_header
from compress.model.weight_files import loaded_files
from compress.quantization.reach import reach

if TYPE_CHECKING:
    from compress.planning.nodes import Node
    from compress.planning.plan import Plan


@dataclass(frozen=True)
class PartWidths:
    """A part's weights with rows and columns.

    shares: by how they are held ("8 bits", "float32"), the largest first; {} where its headers do not tell.
    convolutions: the share that lies in kernels of convolutions, which stay wide. engine: what an engine will hold them in; "" of torch.
    """

    shares: Mapping[str, float]
    convolutions: float = 0.0
    engine: str = ""

    def __str__(self) -> str:
        if self.engine:
            return self.engine
        listed = ", ".join(f"{share:.0%} {kind}" for kind, share in self.shares.items()) or "known when they are here"
        return listed + (f" ({self.convolutions:.0%} in convolutions)" if self.convolutions >= 0.005 else "")


def part_widths(plan: Plan) -> dict[str, PartWidths]:
    """Each working part of the candidate by name; {} where no part of a pipeline is packed, or there are no parts."""
    if not plan.nodes:
        return {}
    artifact = plan.nodes[-1].expected
    if len(artifact.working) < 2 or not artifact.packed(artifact.working):
        return {}
    return {name: _widths(plan, artifact, name) for name in artifact.working}


def _widths(plan: Plan, artifact: Artifact, name: str) -> PartWidths:
    from compress.engines.torch.stored import stored

    part = artifact.components[name]
    if part.format != "torch":
        packed = f"{part.quantization.method}, counted when it is made" if part.quantization else "as wide as they were"
        return PartWidths({}, engine=f"{packed}, on {part.format}")
    if name in artifact.planned:
        return PartWidths({}, engine="known once an earlier step has changed it")
    counts = dict(stored(artifact.folder(name)))
    total, packer = sum(counts.values()), _packer(plan, name)
    if packer and getattr(packer.params, "bits", None) == "auto":
        return PartWidths({}, engine=f"as a budget of {packer.params.budget} shares it out")  # type: ignore[attr-defined]
    if part.quantization and packer and total:
        found = reach(plan.source.artifact, name, getattr(packer.params, "ignore", ()))
        counts = _packed(counts, sum(one.weights for one in found.packed), f"{part.quantization.bits} bits")
    ordered = sorted(counts.items(), key=lambda one: -one[1])
    return PartWidths(
        {kind: count / total for kind, count in ordered if count} if total else {}, _convolved(artifact, name, total)
    )


def _packed(counts: Mapping[str, int], packed: int, kind: str) -> dict[str, int]:
    """The counts by number type, where so many weights of them will be of another: taken off the most frequent types first."""
    left, found = packed, {kind: packed}
    for one, count in sorted(counts.items(), key=lambda item: -item[1]):
        found[one] = count - min(left, count)
        left -= min(left, count)
    return found


def _convolved(artifact: Artifact, name: str, total: int) -> float:
    headers = (
        read_header(file).tensors.values() for file in loaded_files(artifact, name) if file.suffix == ".safetensors"
    )
    return sum(one.count for found in headers for one in found if len(one.shape) > 2) / total if total else 0.0


def _packer(plan: Plan, name: str) -> Node | None:
    """The step of the candidate's chain that packs a component."""
    by_id = {node.id: node for node in plan.nodes}
    node: Node | None = plan.nodes[-1]
    while node and not (name in node.components and node.stage.makes and node.expected.components[name].quantization):
        node = by_id.get(node.after)
    return node
