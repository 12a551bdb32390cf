"""What pare's engine path costs over the engine called by hand, and decoding beside llama.cpp by hand; each in one interleaved run.

`overhead`: a call of the zoo's denoiser, and one token of its language model after 64 others, with the same graph. By hand it takes
tensors and gives a tensor, as a pipeline needs it, or arrays that were made before.
`decode`: 64 tokens of prompt and 48 written by a Llama of 134 M parameters (random weights: speed alone counts, so `build.fastest`
may differ from torch by any amount), greedily, through `generate`; by hand is llama.cpp's own C interface in a bare loop, and the `Llama` class of llama-cpp-python. The model that is
loaded first in a process decodes some percent slower, whoever loads it: so pare's and the bare loop's are each loaded twice, the one
before and after the other, and called in turns.
`call`: one image of the zoo's denoiser in two steps without guidance, by the stock pipeline's call and by the lean one, on OpenVINO
engines and on stubs in their place, which give the same tensors each time: what is left is the call itself.

python -m tests.programs.bench_engines overhead|decode|call
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch

import compress
from compress.artifact import Artifact
from compress.building.racing import Pace, race
from compress.engines.module import read_settings
from compress.opening import open_component
from evaluation.observe import hardware

SEEN, PROMPT, NEW = 64, 64, 48
SHAPE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
WORDS = 32000
Calls = dict[str, Callable[[], object]]


def overhead(folder: Path) -> dict[str, Any]:
    rows = {}
    for engine in ("openvino", "onnxruntime"):
        rows[f"{engine} denoiser"] = _ratio(race(_denoiser(engine, folder), blocks=60))
        rows[f"{engine} decode step"] = _ratio(race(_step(engine, folder), blocks=60))
    return rows


def call(folder: Path) -> dict[str, Any]:
    made = compress.apply("build.openvino", "zoo://digits-diffusion", cache=folder, components="all")
    calls: Calls = {}
    for stubbed in (False, True):
        for lean in (False, True):
            generate = compress.load(made, lean=lean)
            for name in made.components if stubbed else ():
                _stub(getattr(generate, name).runner)
            name = f"{'lean' if lean else 'stock'} call{' of stubs' if stubbed else ''}"
            calls[name] = partial(_generate, generate, [torch.Generator().manual_seed(0)])
    found = {name: pace.seconds for name, pace in race(calls, blocks=100).items()}
    times = {f"{name} ms": round(1e3 * seconds, 3) for name, seconds in found.items()}
    return times | {"stock over lean": round(found["stock call"] / found["lean call"], 3)}


def _generate(generate: Any, generators: list[torch.Generator]) -> object:
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np"}
    return generate(prompt=["a red three on white paper"], generator=generators, **call)


def _stub(runner: Any) -> None:
    """Let an engine answer a call as it did the first of the same shapes."""
    real, kept = runner.run, {}

    def answer(values: list[torch.Tensor]) -> Any:
        shapes = tuple(value.shape for value in values)
        if shapes not in kept:
            kept[shapes] = real(values)
        return kept[shapes]

    runner.run = answer


def _ratio(paces: Mapping[str, Pace]) -> dict[str, float]:
    ours = paces["pare"].seconds
    times = {f"{name} ms": round(1e3 * pace.seconds, 3) for name, pace in paces.items()}
    return times | {f"pare over {name}": round(ours / paces[name].seconds, 4) for name in paces if name != "pare"}


def _denoiser(engine: str, folder: Path) -> Calls:
    made = compress.apply(f"build.{engine}", "zoo://digits-diffusion", cache=folder, components=("unet",))
    unet: Any = open_component(made, "unet")
    states = torch.randn(2, _tokens(made), unet.config.cross_attention_dim)
    call = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor(500.0), "encoder_hidden_states": states}
    tensors = list(unet.feed((), call).values())
    arrays = [t.numpy() for t in tensors]
    run = _openvino(made.folder("unet"), arrays) if engine == "openvino" else _onnxruntime(unet.runner.open())
    return {
        "pare": lambda: unet(**call, return_dict=False),
        "by hand": lambda: torch.from_numpy(run([t.numpy() for t in tensors])),
        "by hand on arrays": lambda: run(arrays),
    }


def _openvino(folder: Path, values: list[Any]) -> Callable[[list[Any]], Any]:
    """Compiled for these shapes, for latency."""
    model = openvino.Core().read_model(folder / "openvino_model.xml")
    model.reshape({i: list(v.shape) for i, v in enumerate(values)})
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda values: request.infer(values, share_inputs=True, share_outputs=True)[0].copy()


def _onnxruntime(session: Any) -> Callable[[list[Any]], Any]:
    names = [port.name for port in session.get_inputs()]
    return lambda values: session.run(None, dict(zip(names, values, strict=True)))[0]


def _tokens(artifact: Any) -> int:
    """How many tokens a caption has: what the denoiser was built for."""
    found: int = json.loads((artifact.path / "text_encoder" / "config.json").read_text())["max_position_embeddings"]
    return found


def _step(engine: str, folder: Path) -> Calls:
    """One more token, always the same one after the same others: the cache does not grow."""
    made = compress.apply(f"build.{engine}", "zoo://docs-llama", cache=folder)
    model: Any = open_component(made, "model")
    past = model(torch.arange(SEEN)[None]).past_key_values
    token = torch.tensor([[5]])
    ours, by_hand = _stateful(model, past, token) if engine == "openvino" else _cached(model, past, token)
    array = token.numpy()
    return {
        "pare": ours,
        "by hand": lambda: torch.from_numpy(by_hand(token.numpy())),
        "by hand on arrays": lambda: by_hand(array),
    }


def _cached(model: Any, past: Any, token: torch.Tensor) -> tuple[Callable[[], object], Callable[[Any], Any]]:
    kept, seen = past.arrays, past.seen
    session, names = model.decoder.graph.open(), tuple(kept)

    def ours() -> object:
        past.arrays, past.seen = kept, seen
        return model(token, past_key_values=past)

    def by_hand(tokens: Any) -> Any:
        logits, *grown = session.run(None, {"input_ids": tokens, "position_ids": np.array([[seen]]), **kept})
        assert dict(zip(names, grown, strict=True))  # the cache of the next token
        return logits

    return ours, by_hand


def _stateful(model: Any, past: Any, token: torch.Tensor) -> tuple[Callable[[], object], Callable[[Any], Any]]:
    from compress.engines.openvino.runtime import input_name, language_inputs

    names = tuple(map(input_name, model.decoder.graph.compiled.inputs))
    row = np.zeros(1, np.int32)

    def by_hand(tokens: Any) -> Any:
        # The cache grows by a token at each call of either side, so both see the same lengths.
        values = list(language_inputs(tokens, past.seen, row, names).values())
        found = past.request.own.infer(values, share_inputs=True, share_outputs=True)[0].copy()
        past.seen += 1
        return found

    return lambda: model(token, past_key_values=past), by_hand


def decode(folder: Path) -> dict[str, Any]:
    model = _llama(folder / "model")
    precisions = ("bfloat16", "int8_weights", "int4_weights")
    options: dict[str, Any] = {"precisions": precisions, "within": 2.0, "prompt_tokens": PROMPT, "new_tokens": NEW}
    kept = compress.apply("build.fastest", model, cache=folder, **options)
    file = compress.apply("build.gguf", model, cache=folder, precision="int4_weights").path / "model.gguf"
    others = {
        f"openvino {precision}": compress.apply("build.openvino", model, cache=folder, precision=precision)
        for precision in precisions
    }
    prompt = torch.randint(2, 258, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 1}

    def ours(artifact: Artifact) -> Callable[[], object]:
        opened: Any = compress.load(artifact)
        return lambda: opened.generate(prompt, attention_mask=torch.ones_like(prompt), **length)

    settings = read_settings(kept.path)
    name = f"build.fastest: {settings['engine']} {settings['precision']}"
    first_ours, first_by_hand, second_by_hand, second_ours = (
        ours(kept),
        _bare(file, prompt),
        _bare(file, prompt),
        ours(kept),
    )
    calls: Calls = {
        name: in_turns(first_ours, second_ours),
        "llama.cpp by hand, C interface": in_turns(first_by_hand, second_by_hand),
        "llama.cpp by hand, class Llama": _high(file, prompt),
        **{name: ours(artifact) for name, artifact in others.items()},
    }
    assert calls["llama.cpp by hand, C interface"]() == calls["llama.cpp by hand, class Llama"]()
    sizes = {name: _bytes(kept.path), **{name: _bytes(a.path) for name, a in others.items()}}
    return _reported(race(calls, blocks=24), sizes, file.stat().st_size)


def in_turns(*calls: Callable[[], object]) -> Callable[[], object]:
    following = itertools.cycle(calls)
    return lambda: next(following)()


def _reported(paces: Mapping[str, Pace], sizes: Mapping[str, int], by_hand: int) -> dict[str, Any]:
    roof = float(hardware.facts()["read_gb_s"])
    best = min(p.seconds for name, p in paces.items() if "by hand" in name)
    rows = {}
    for name, pace in paces.items():
        read = sizes.get(name, by_hand) * NEW / pace.seconds / 1e9
        rows[name] = {
            "tokens_per_second": round(NEW / pace.seconds, 1),
            "times_llama_cpp_by_hand": round(best / pace.seconds, 3),
            "noise": round(pace.spread, 3),
            "of_read_bandwidth": round(read / roof, 3),
        }
    return {"read_gb_s": roof, **rows}


def _bytes(folder: Path) -> int:
    return max(f.stat().st_size for f in folder.iterdir() if f.is_file())


def _llama(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny import tiny_byte_tokenizer

    torch.manual_seed(0)
    tokenizer: Any = tiny_byte_tokenizer()
    config = LlamaConfig(vocab_size=WORDS, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, **SHAPE)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _bare(file: Path, prompt: torch.Tensor) -> Callable[[], object]:
    import llama_cpp as library

    model = library.llama_model_load_from_file(str(file).encode(), library.llama_model_default_params())
    options = library.llama_context_default_params()
    options.n_ctx, options.n_threads, options.n_threads_batch = 1024, *(2 * [torch.get_num_threads()])
    context = library.llama_init_from_model(model, options)
    tokens, one = (library.llama_token * PROMPT)(*prompt[0].tolist()), (library.llama_token * 1)()

    def by_hand() -> object:
        library.llama_memory_clear(library.llama_get_memory(context), False)
        library.llama_decode(context, library.llama_batch_get_one(tokens, PROMPT))
        for written in range(NEW):
            one[0] = int(np.ctypeslib.as_array(library.llama_get_logits_ith(context, -1), shape=(WORDS,)).argmax())
            if written < NEW - 1:
                library.llama_decode(context, library.llama_batch_get_one(one, 1))
        return one[0]

    return by_hand


def _high(file: Path, prompt: torch.Tensor) -> Callable[[], object]:
    import llama_cpp

    threads = torch.get_num_threads()
    model = llama_cpp.Llama(str(file), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)

    def by_hand() -> object:
        model.reset()
        for count, token in enumerate(model.generate(prompt[0].tolist(), temp=0.0, repeat_penalty=1.0), 1):
            if count == NEW:
                return token
        return None

    return by_hand


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        rows = {"overhead": overhead, "decode": decode, "call": call}[sys.argv[1]](Path(folder))
    sys.stdout.write(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
