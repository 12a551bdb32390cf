"""Opens models by their libraries' own calls, in a process in which neither pare nor its tests can be imported, and keeps what they give.

    python tests/reference/alone.py JOBS.json

A job names a folder, how it is opened, a safetensors file with the tensors of a call, and one for what it gives: `found`, the first output;
of language models `written` too, the tokens that it writes greedily. `tests/opened_alone.py` writes jobs and reads what comes of them.
It runs in other environments as well (that of auto-gptq is five years old), and so keeps to what they all have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


class Without:
    """Finds none of what this process must do without."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in ("compress", "evaluation", "tests"):
            raise ImportError(f"{name} is not installed")


def do_without() -> None:
    sys.meta_path.insert(0, Without())
    try:
        import compress  # noqa: F401
    except ImportError:
        return
    sys.exit("pare is here")


def transformers_own(job: Mapping[str, Any], call: Tensors) -> Tensors:
    import transformers

    return _torch(getattr(transformers, job["kind"]).from_pretrained(job["folder"]), job, call)


def diffusers_own(job: Mapping[str, Any], call: Tensors) -> Tensors:
    import diffusers

    model = getattr(diffusers, job["kind"]).from_pretrained(job["folder"], torch_dtype=torch.float32)
    return _torch(model, job, call)


def gguf(job: Mapping[str, Any], call: Tensors) -> Tensors:
    """By transformers' reader, which makes floats of every weight."""
    from transformers import AutoConfig, AutoModelForCausalLM

    # The reader makes a config of its own otherwise, without a head's size or GPT-2's width.
    options = {"gguf_file": "model.gguf", "dtype": torch.float32, "config": AutoConfig.from_pretrained(job["folder"])}
    return _torch(AutoModelForCausalLM.from_pretrained(job["folder"], **options), job, call)


def llama_cpp(job: Mapping[str, Any], call: Tensors) -> Tensors:
    import llama_cpp

    model = llama_cpp.Llama(f"{job['folder']}/model.gguf", n_ctx=128, logits_all=True, verbose=False)
    seen = 0

    def step(tokens: list[int]) -> torch.Tensor:
        nonlocal seen
        model.eval(tokens)
        seen += len(tokens)
        return torch.from_numpy(model.scores[seen - len(tokens) : seen].copy())[None]

    return _stepwise(step, job, call)


def auto_gptq(job: Mapping[str, Any], call: Tensors) -> Tensors:
    """Its kernels in torch's own operations, for there is no GPU. They hold half-precision scales."""
    from auto_gptq import AutoGPTQForCausalLM

    opened = AutoGPTQForCausalLM.from_quantized(
        job["folder"], device="cpu", use_triton=False, torch_dtype=torch.float32
    )
    packed = sum(type(part).__name__ == "QuantLinear" for part in opened.model.modules())
    return {**_torch(opened.model.float(), job, call), "packed": torch.tensor(packed)}


def compressed_tensors(job: Mapping[str, Any], call: Tensors) -> Tensors:
    """The weight of every packed layer as the library unpacks it, by what the config says of it, in float32; no model is made."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    with open(f"{job['folder']}/config.json") as file:
        packing = json.load(file)["quantization_config"]
    (group,) = packing["config_groups"].values()
    scheme = QuantizationScheme(**{name: group[name] for name in ("targets", "weights")})
    library = BaseCompressor.get_value_from_registry(packing["format"])
    stored: dict[str, Tensors] = {}
    for name, tensor in load_file(f"{job['folder']}/model.safetensors").items():
        layer, _, part = name.rpartition(".")
        stored.setdefault(layer, {})[part] = tensor.float() if part == "weight_scale" else tensor
    layers = {layer: parts for layer, parts in stored.items() if "weight_packed" in parts}
    return {layer: library.decompress(parts, scheme)["weight"].contiguous() for layer, parts in layers.items()}


def openvino(job: Mapping[str, Any], call: Tensors) -> Tensors:
    """A graph in float32, as its precision was decided when it was built: a component's called once, a language model's with its cache."""
    import numpy as np
    import openvino as library

    options = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    compiled = library.Core().compile_model(f"{job['folder']}/openvino_model.xml", "CPU", options)
    request = compiled.create_infer_request()
    names = [next(n[6:] for n in port.get_names() if n.startswith("input.")) for port in compiled.inputs]
    if not job["written"]:
        types = [port.get_element_type().to_dtype() for port in compiled.inputs]
        found = request.infer([call[name].numpy().astype(kind) for name, kind in zip(names, types, strict=True)])
        return {"found": torch.from_numpy(found[0].copy())}
    seen = 0

    def step(tokens: list[int]) -> torch.Tensor:
        nonlocal seen
        places = np.arange(seen, seen + len(tokens))
        seen += len(tokens)
        given = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, seen), np.int64)}
        given |= {"position_ids": places[None], "cache_position": places, "beam_idx": np.zeros(1, np.int32)}
        return torch.from_numpy(request.infer([given[name] for name in names])[0].copy())

    return _stepwise(step, job, call)


OPENERS: dict[str, Callable[[Mapping[str, Any], Tensors], Tensors]] = {
    "transformers": transformers_own,
    "diffusers": diffusers_own,
    "gguf": gguf,
    "llama_cpp": llama_cpp,
    "auto_gptq": auto_gptq,
    "compressed_tensors": compressed_tensors,
    "openvino": openvino,
}


def called(model: Any, kind: str, call: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The first tensor that a component gives, in float32; a VAE decodes."""
    given: dict[str, Any] = dict(call)
    for name in [name for name in given if "." in name]:  # of a dictionary
        outer, inner = name.split(".")
        given.setdefault(outer, {})[inner] = given.pop(name)
    with torch.no_grad():
        found = (model.decode if kind.startswith("Autoencoder") else model)(**given)
    while not torch.is_tensor(found):
        found = found[0]
    return found.float().contiguous()


def _torch(model: Any, job: Mapping[str, Any], call: Tensors) -> Tensors:
    made = {"found": called(model.eval(), job["kind"], call)}
    if job["written"]:
        read = call["input_ids"]
        exact = {"max_new_tokens": job["written"], "min_new_tokens": job["written"], "do_sample": False}
        mask = torch.ones_like(read)
        written = model.generate(input_ids=read, attention_mask=mask, pad_token_id=0, **exact)
        made["written"] = written[0, read.shape[1] :].contiguous()
    return made


def _stepwise(step: Callable[[list[int]], torch.Tensor], job: Mapping[str, Any], call: Tensors) -> Tensors:
    """What a language model with a cache of its own gives and writes, its text not ended early: `step` takes tokens that follow those before,
    and gives their logits [1, tokens, vocabulary]."""
    with open(f"{job['folder']}/config.json") as file:
        end = json.load(file).get("eos_token_id")
    found = last = step(call["input_ids"][0].tolist())
    written: list[int] = []
    while len(written) < job["written"]:
        logits = last[0, -1].clone()
        if end is not None:
            logits[end] = -torch.inf
        written.append(int(logits.argmax()))
        last = step(written[-1:])
    return {"found": found, "written": torch.tensor(written)}


def main(jobs: str) -> None:
    do_without()
    with open(jobs) as file:
        asked = json.load(file)
    torch.set_num_threads(asked["threads"])
    for job in asked["jobs"]:
        call = load_file(job["call"]) if job["call"] else {}
        save_file(OPENERS[job["opener"]](job, call), job["out"])


if __name__ == "__main__":
    main(*sys.argv[1:])
