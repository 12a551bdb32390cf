"""An engine's step gives what transformers' own class gives, made a shorter way."""

from __future__ import annotations

import copy
from dataclasses import fields

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from compress.engines.language import Past, step_output


def test_a_step_gives_what_transformers_gives() -> None:
    logits, past = torch.randn(1, 2, 5), Past()
    ours, theirs = step_output(logits, past), CausalLMOutputWithPast(logits=logits, past_key_values=past)  # type: ignore[arg-type]
    for made in (ours, copy.copy(ours)):
        assert type(made) is type(theirs)
        assert all(getattr(made, field.name) is getattr(theirs, field.name) for field in fields(theirs))
        assert list(made) == list(theirs)
        assert made.to_tuple() == theirs.to_tuple() == (logits, past)
        assert made.loss is None
        assert "attentions" not in made
