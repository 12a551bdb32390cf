"""Teach a language model to say what its teacher says: the whole distribution of the next token, and the hidden states.

Use it after a cut, on text like that the model will meet. Rows of `tokens` tokens are cut from the documents of the training
data, drawn at random. Conversations (`messages`) are read through the tokenizer's chat template, and of them only the assistant's
tokens are learnt. Where widths differ, a learned projection stands between the hidden states. A teacher of its own has the
student's tokens and as many logits: `teacher: ./larger`, a larger model of the family.
Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015); Muralidharan et al., "Compact Language Models via
Pruning and Knowledge Distillation" (Minitron, 2024).

    - prune.depth: {ratio: 0.25}
    - distill.logits: {teacher: source, steps: 400}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from compress.artifact import LANGUAGE_MODEL, Artifact, derive, rewritten, write_manifest
from compress.catalogue import Forecast, Misfit, stage
from compress.context import Context
from compress.distillation.compatibility import FAMILY, reading_misfits, stack_misfits
from compress.errors import DataError, ModelError
from compress.machine.devices import CPU
from compress.model.families import feature_stacks
from compress.params import TRAINED, Training

if TYPE_CHECKING:
    import torch

    from compress.opening.models import LanguageModel


class DistillLogits(Training):
    steps: int = Field(400, ge=1, description="optimiser steps")
    batch: int = Field(8, ge=1, description="rows in a batch")
    tokens: int = Field(256, ge=8, description="tokens in a row; at most the model's own length")
    documents: int = Field(20_000, ge=1, description="documents of the training data to draw rows from, at most")
    temperature: float = Field(1.0, gt=0, description="softens both distributions before they are compared")
    hidden_weight: float = Field(0.5, ge=0, description="weight of the blocks' hidden states beside the logits'")
    data_weight: float = Field(0.0, ge=0, description="weight of the text itself: cross-entropy of the real next token")


def forecast(artifact: Artifact, params: DistillLogits) -> Forecast:
    """Checkpoints hold the weights, their average and two moments; an old one goes once the new one is whole."""
    from compress.sources.models import parameter_count

    feature_stacks(
        artifact.components[LANGUAGE_MODEL].kind, artifact.config(LANGUAGE_MODEL)
    )  # an unknown family is refused
    weights = 4 * parameter_count(artifact.folder(LANGUAGE_MODEL))
    return Forecast(scratch_bytes=2 * 4 * weights, memory_bytes=TRAINED * weights)


def unfit(artifact: Artifact, params: DistillLogits, inputs: Mapping[str, Artifact]) -> Iterator[Misfit]:
    yield from reading_misfits(artifact, inputs["teacher"], params.tokens)
    yield from stack_misfits(artifact, inputs["teacher"], FAMILY)


@stage(
    version=1,
    params=DistillLogits,
    needs=("language_model",),
    formats={"torch": "torch"},
    effects=("weights",),
    reproducible="bytes",
    bound_to=("isa",),
    data=lambda params: ("train",),
    inputs=("teacher",),
    libraries=("accelerate", "torch", "transformers"),
    forecast=forecast,
    unfit=unfit,
)
def run(artifact: Artifact, params: DistillLogits, context: Context) -> None:
    from compress.engines.torch.runtime import save_component
    from compress.opening import open_language
    from compress.training.loop import teach

    source = context.inputs["teacher"]
    if source.components[LANGUAGE_MODEL].format != "torch":
        raise ModelError("the teacher is an engine", place=str(source.path), fix="name an earlier step")
    teacher, task = (open_language(side, context.opening.of("float32")) for side in (source, artifact))
    rows = rows_of(task, params, context)
    learner, loss_at = target(task, teacher, rows, params, context)
    curve = teach(learner, loss_at, params, context)
    made = derive(artifact, context.out, without=rewritten(artifact, (LANGUAGE_MODEL,)), link=context.link)
    save_component(task.model, artifact.path, made.path)
    write_manifest(made)
    seen = params.steps * params.accumulate * params.batch * rows.tokens.shape[1]
    message = f"loss {curve[0][1]:.4g} → {curve[-1][1]:.4g} over {seen} tokens{rows.share}"
    context.note(message, loss=curve, tokens_seen=seen)


@dataclass(frozen=True)
class Rows:
    """What is learnt from: int64 [rows, tokens].

    counted: bool, of the same shape, the tokens behind which one of the assistant's stands, so that what is foretold there is learnt;
        None: everything is.
    """

    tokens: torch.Tensor
    counted: torch.Tensor | None = None

    @property
    def share(self) -> str:
        """How much of it is learnt, in words; "" where everything is."""
        return "" if self.counted is None else f", {float(self.counted.float().mean()):.0%} of them the assistant's"


def rows_of(task: LanguageModel, params: DistillLogits, context: Context) -> Rows:
    """The documents, one behind the other, in rows of one length; where conversations are among them, those rows that have a token
    to learn.

    Raises:
        DataError: they do not fill one row.
    """
    import torch

    stream, learnt = _read(task, params.documents, context)
    length = min(params.tokens, task.max_tokens)
    if length < params.tokens:
        context.note(f"rows of {length} tokens, the most that the model reads, where {params.tokens} were asked for")
    count = len(stream) // length
    if not count:
        raise DataError(
            f"{len(stream)} tokens do not fill a row of {length}",
            place=context.data["train"].source,
            fix="lower `tokens`",
        )
    tokens = torch.tensor(stream[: count * length], device=CPU).view(count, length)
    if all(learnt):
        return Rows(tokens)
    counted = torch.tensor(learnt[: count * length], device=CPU).view(count, length).roll(-1, 1)
    counted[:, -1] = False  # what it foretells stands in another row
    spoken = counted.any(1)
    if not spoken.any():
        message = f"none of {count} rows of {length} tokens has a token of the assistant's"
        short = f"give shorter conversations: the model reads {length} tokens, and each answer lies behind them"
        fix = short if length == task.max_tokens else "raise `tokens`, or give more conversations"
        raise DataError(message, place=context.data["train"].source, fix=fix)
    return Rows(tokens[spoken], counted[spoken])


def _read(task: LanguageModel, documents: int, context: Context) -> tuple[list[int], list[bool]]:
    """The tokens of the first documents, one behind the other, and which of them are learnt: of conversations, the assistant's."""
    items = context.data["train"].first(documents)
    stream: list[int] = []
    learnt: list[bool] = []
    for item in context.progress(items, "reading documents", len(items)):
        found = task.read(item)
        stream += found.tokens
        learnt += [True] * len(found.tokens) if found.counted is None else found.counted
    return stream, learnt


def target(
    task: LanguageModel, teacher: LanguageModel, rows: Rows, params: DistillLogits, context: Context
) -> tuple[Any, Callable[[int], Mapping[str, Any]]]:
    """What learns (the student and its projections), and its losses by the number of the batch."""
    import numpy as np
    import torch

    from compress.algorithms.losses import Projections, listening, match_blocks, tempered_kl

    student = task.model.requires_grad_(True)
    taught_by = teacher.model.requires_grad_(False)
    pairs = [p for a, b in zip(_stacks(task), _stacks(teacher), strict=True) for p in match_blocks(a, b)]
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    widths = [(m.config.get_text_config().hidden_size,) for m in (student, taught_by)]
    torch.manual_seed(context.seed)
    projections = Projections([(widths[0][0], widths[1][0])] * len(pairs)).to(context.opening.device)

    def loss_at(number: int) -> Mapping[str, Any]:
        drawn = np.random.default_rng([context.seed, number]).integers(len(rows.tokens), size=params.batch)
        drawn_rows = torch.from_numpy(drawn)
        tokens = rows.tokens[drawn_rows].to(context.opening.device)
        at = None if rows.counted is None else rows.counted[drawn_rows].to(context.opening.device)

        def kept(values: torch.Tensor) -> torch.Tensor:
            """Of what stands at each token, what is learnt."""
            return values if at is None else values[at]

        with torch.no_grad(), listening(taught_by, theirs) as taught:
            wanted = taught_by(input_ids=tokens, use_cache=False).logits
        with listening(student, ours) as learnt:
            found = student(input_ids=tokens, use_cache=False).logits
        losses = {"kl": tempered_kl(kept(found), kept(wanted), params.temperature)}
        if params.hidden_weight:
            features = [kept(learnt[n]) for n in ours], [kept(taught[n]) for n in theirs]
            losses["hidden"] = params.hidden_weight * projections.errors(*features)
        if params.data_weight:
            losses["text"] = params.data_weight * _text_error(found, tokens, at)
        return losses

    return torch.nn.ModuleDict({"student": student, "projections": projections}), loss_at


def _text_error(logits: torch.Tensor, tokens: torch.Tensor, at: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy of the tokens that really follow, nats: of all, or behind those `at` which it is learnt."""
    from torch.nn.functional import cross_entropy

    if at is None:
        return cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
    return cross_entropy(logits[:, :-1][at[:, :-1]].float(), tokens[:, 1:][at[:, :-1]])


def _stacks(task: LanguageModel) -> tuple[tuple[str, ...], ...]:
    artifact = task.artifact
    return feature_stacks(artifact.components[LANGUAGE_MODEL].kind, artifact.config(LANGUAGE_MODEL))
