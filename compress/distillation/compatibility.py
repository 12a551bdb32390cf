"""Whether a model can teach another, read from their configs and tokenizers: what would fail, or teach something else, once it runs.

A teacher that is an earlier step, or the source, is of the student's own original: only its guidance can be amiss. One of its own need not
fit at all."""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from compress.artifact import LANGUAGE_MODEL, MANIFEST, Artifact
from compress.catalogue import Misfit
from compress.distillation.few_steps import FewSteps, flows, folded, guided_twice, guiding, ill_guided
from compress.distillation.students import forgotten
from compress.errors import UserError
from compress.machine.library_classes import has_learned_positions
from compress.model.families import feature_stacks
from compress.pipelines.autoencoders import TEACHERS, levels_of
from compress.pipelines.call_arguments import NEGATIVE, call_arguments
from compress.pipelines.image_inputs import base_of
from compress.pipelines.index import class_of
from compress.pipelines.part_checks import POOLED, READS
from compress.pipelines.schedulers import config_of
from compress.tokenizers.tokens import Tokens, read_tokens
from compress.tokenizers.vocabulary import FILES, embeddings, positions

TEACHER = "teacher"
FAMILY = "give a teacher of the student's own family, with the very same tokenizer and vocab_size"
LIKE = "give a teacher that generates as the student does, such as the model it was made from, or a larger one of its family"
BEFORE = "put this stage in front of that one, or give a teacher that was taught the same, such as that very step"
OWN_CALL = f"take {NEGATIVE} out of the call in its {MANIFEST}, or give another teacher"
# What of two configs must be the same: of the denoisers, for the latents; of the VAEs; of the schedulers, for the noise.
LATENT = ("in_channels", "sample_size")
VAE = ("latent_channels", "scaling_factor", "shift_factor", "latents_mean", "latents_std")
NOISE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")
# What else, for a student that is given the very calls of its teacher: what comes back, and what goes in beside latent and text.
CALL = (
    "out_channels",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "pooled_projection_dim",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "class_embed_type",
    "time_cond_proj_dim",
    "guidance_embeds",
)


def _of_one_original(student: Artifact, teacher: Artifact) -> bool:
    """Whether the two are planned on the same folder, and were parted only by stages."""
    return student.path == teacher.path


def stack_misfits(student: Artifact, teacher: Artifact, fix: str) -> Iterator[Misfit]:
    """Blocks of the two that cannot be compared. That a student's own are not known is reported of the student."""
    name = student.main
    try:
        ours = feature_stacks(student.components[name].kind, student.config(name))
    except UserError:
        return
    try:
        theirs = feature_stacks(teacher.components[name].kind, teacher.config(name))
    except UserError as error:
        for problem in error.problems:
            yield Misfit(TEACHER, problem.message, problem.fix)
        return
    if len(ours) != len(theirs):
        message = f"it has {len(theirs)} stacks of blocks, and the student {len(ours)}, so that none can be compared"
        yield Misfit(TEACHER, message, fix)


# ---------------------------------------------------------------- language models


def reading_misfits(student: Artifact, teacher: Artifact, tokens: int) -> Iterator[Misfit]:
    """What keeps a language model from saying of the student's tokens what it thinks of them.

    Args:
        tokens: in a row.
    """
    if _of_one_original(student, teacher):
        return
    own, other = student.config(LANGUAGE_MODEL), teacher.config(LANGUAGE_MODEL)
    ours, theirs = embeddings(own), embeddings(other)
    if ours and theirs and ours != theirs:
        yield Misfit(TEACHER, f"it gives {theirs} logits (vocab_size), and the student {ours}", FAMILY)
    if message := _other_tokens(student, teacher):
        yield Misfit(TEACHER, message, FAMILY)
    most, row = positions(other), min(tokens, positions(own) or tokens)
    if most and row > most and has_learned_positions(str(other.get("model_type", ""))):
        message = f"it has {most} positions, and the rows have {row} tokens"
        yield Misfit(TEACHER, message, f"tokens: {most}, or a teacher with more positions")


def _other_tokens(student: Artifact, teacher: Artifact) -> str:
    """How the tokens of two tokenizers differ, or ""."""
    ours, theirs = read_tokens(student.path), read_tokens(teacher.path)
    if ours.base and theirs.base:
        return _differing(ours, theirs)
    both = (n for n in FILES[1:-1] if (student.path / n).is_file() and (teacher.path / n).is_file())
    unlike = next((n for n in both if not filecmp.cmp(student.path / n, teacher.path / n, shallow=False)), "")
    return f"its tokenizer is another: its {unlike} is not the student's" if unlike else ""


def _differing(ours: Tokens, theirs: Tokens) -> str:
    """The first number that two tokenizers give to different tokens, or "". An added token, which only a text that has it letter by
    letter meets, may be there in one alone."""
    own, other = ({number: token for token, number in side.numbers.items()} for side in (ours, theirs))
    base = {*ours.base.values(), *theirs.base.values()}
    for number in sorted(base | (own.keys() & other.keys())):
        if own.get(number) != other.get(number):
            mine, its = (repr(side[number]) if number in side else "none" for side in (own, other))
            return f"its tokenizer is another: token {number} is {its}, and {mine} in the student's"
    return ""


# ---------------------------------------------------------------- denoisers


def trajectory_misfits(student: Artifact, teacher: Artifact, params: FewSteps) -> Iterator[Misfit]:
    """What keeps a denoiser from being taught by where another takes the same latents; what each is reported of a text is its own affair."""
    if not _of_one_original(student, teacher):
        yield from _other_latents(student, teacher)
    yield from _misguided(teacher, params.guidance, params.negative_prompt)
    if why := guided_twice(teacher):
        yield Misfit(TEACHER, why, OWN_CALL)


def reported_misfits(student: Artifact, teacher: Artifact, guidance: float | None) -> Iterator[Misfit]:
    """What keeps a denoiser from being given the very calls of another, and held to what comes back.

    Args:
        guidance: the scale by which the teacher is to generate; None for its own.
    """
    yield from _misguided(teacher, guidance, None)
    if why := forgotten(student, teacher):
        yield Misfit(TEACHER, why, BEFORE)
    if _of_one_original(student, teacher):
        return
    yield from _other_latents(student, teacher)
    if student.main != teacher.main:
        return
    name = student.main
    ours, theirs = student.components[name].kind, teacher.components[name].kind
    if ours != theirs:
        yield Misfit(TEACHER, f"its `{name}` is of the class {theirs}, and the student's of {ours}", LIKE)
        return
    kind = base_of(class_of(student.path))
    texts = {field for table in (READS, POOLED) for field in table.get(kind, {})}
    config, other = student.known_config(name), teacher.known_config(name)
    yield from _unlike(f"`{name}`", config, other, sorted({*texts, *CALL}))
    yield from stack_misfits(student, teacher, LIKE)
    if not flows(config_of(student)):
        yield from _unlike("scheduler", config_of(student), config_of(teacher), ("prediction_type",))


def _other_latents(student: Artifact, teacher: Artifact) -> Iterator[Misfit]:
    """Latents that do not mean the same to both: other channels, another scale, other noise."""
    name = student.main
    if name != teacher.main:
        yield Misfit(TEACHER, f"its denoiser is a `{teacher.main}`, and the student's a `{name}`", LIKE)
        return
    yield from _unlike(f"`{name}`", student.known_config(name), teacher.known_config(name), LATENT)
    yield from _other_vae(student, teacher)
    ours, theirs = config_of(student), config_of(teacher)
    if ours and theirs and flows(ours) != flows(theirs):
        ways = {True: "goes along a flow", False: "takes noise away by a schedule of betas"}
        yield Misfit(TEACHER, f"it {ways[flows(theirs)]}, and the student {ways[flows(ours)]}", LIKE)
    else:
        yield from _unlike("scheduler", ours, theirs, NOISE)


def _other_vae(student: Artifact, teacher: Artifact) -> Iterator[Misfit]:
    there = [side for side in (student, teacher) if "vae" in side.components]
    if len(there) == 1:
        message = (
            "has no `vae`, and the student has one" if there[0] is student else "has a `vae`, and the student none"
        )
        yield Misfit(TEACHER, f"it {message}: their latents are not the same", LIKE)
    elif there:
        yield from _unlike("`vae`", student.known_config("vae"), teacher.known_config("vae"), VAE)


def decoding_misfits(student: Artifact, teacher: Artifact) -> Iterator[Misfit]:
    """What keeps a VAE from decoding the latents that another pipeline generates. A small one's are unscaled, so that of two kinds
    only the shape is held together."""
    if _of_one_original(student, teacher) or "vae" not in student.components:
        return
    known = teacher.components.get("vae")
    if known is not None and known.kind not in TEACHERS:
        yield Misfit(TEACHER, f"its `vae` is a {known.kind}, and this stage knows {', '.join(TEACHERS)}", LIKE)
    elif known is None or known.kind == student.components["vae"].kind:
        yield from _other_vae(student, teacher)
    else:
        ours, theirs = student.config("vae"), teacher.config("vae")
        yield from _unlike("`vae`", ours, theirs, VAE[:1])
        if levels_of(ours) != levels_of(theirs):
            message = f"its `vae` works at {levels_of(theirs)} sizes, and the student's at {levels_of(ours)}"
            yield Misfit(TEACHER, message, LIKE)


def _unlike(what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], fields: Iterable[str]) -> Iterator[Misfit]:
    """Fields that both configs have, with other values."""
    for field in fields:
        if field in ours and field in theirs and _plain(ours[field]) != _plain(theirs[field]):
            message = f"its {what} says {field} {theirs[field]}, and the student's {ours[field]}"
            yield Misfit(TEACHER, message, LIKE)


def _plain(value: object) -> object:
    """A value that is listed once for each of several, as that one."""
    if isinstance(value, list | tuple) and value and all(one == value[0] for one in value):
        return value[0]
    return value


def _misguided(teacher: Artifact, scale: float | None, negative: str | None) -> Iterator[Misfit]:
    """Guidance that the teacher has no use for: its pipeline takes none, or it was taught into it already."""
    if why := ill_guided(teacher, scale):
        yield Misfit(TEACHER, why, "leave `guidance` out, or give a teacher that is still guided")
    if negative is None:
        return
    how, kind = guiding(teacher), class_of(teacher.path)
    if NEGATIVE not in (call_arguments(kind) or {}) or not how.folds:
        yield Misfit(TEACHER, f"{kind} leads away from nothing", "leave `negative_prompt` out")
    elif not why and (called := folded(teacher)):
        yield Misfit(TEACHER, f"{called}: nothing leads away from a negative prompt", "leave `negative_prompt` out")
