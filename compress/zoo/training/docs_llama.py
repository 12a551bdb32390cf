"""Train `zoo://docs-llama`, a small language model of `zoo://docstrings`, on one CPU core in half an hour.

    python -m compress.zoo.training.docs_llama --minutes 32   # train, or go on where it stopped, then ship and score
    python -m compress.zoo.training.docs_llama --score        # held-out numbers of the shipped weights and of 5-grams

The learning rate follows the share of the time budget that is used, so a slow machine anneals as completely as a fast
one; with `--steps N` it follows the steps, and two such runs on one machine are the same to the bit. An interrupted run
goes on from its last evaluation. Matrices learn by Muon, the rest by AdamW.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from compress.store.cache import default_root
from compress.zoo import docstrings
from compress.zoo.docstrings import Document
from compress.zoo.ngram import NGramModel

WORK = default_root() / "training" / "docs-llama"
SHIPPED = Path(__file__).parents[1] / "models" / "docs-llama"

END = "<|endoftext|>"
VOCABULARY = 4096
CONTEXT = 512
BATCH = 4
PEAK_RATE = 3e-3
FINAL_RATE_SHARE = 0.03
WARM_UP_STEPS = 60
WEIGHT_DECAY = 0.1
SEED = 0
SECONDS_BETWEEN_EVALUATIONS = 150.0


@dataclass
class Progress:
    """Where a run stands; everything but the tensors of a checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best_bits_per_byte: float = math.inf
    curve: list[dict[str, float]] = field(default_factory=list)


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Byte-level BPE with GPT-2's split pattern; id 0 is `<|endoftext|>`, both beginning and end of a document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_model() -> LlamaForCausalLM:
    """About 5.8 million parameters, drawn from `SEED`."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:  # each block begins as the identity, which makes the first steps count
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def windows_of_epoch(documents: Sequence[NDArray[np.int64]], epoch: int) -> NDArray[np.int64]:
    """Documents shuffled, each begun by id 0, laid end to end and cut at a random phase: [windows, CONTEXT + 1]."""
    draw = np.random.default_rng([SEED, epoch])
    stream = np.concatenate([np.concatenate(([0], documents[i])) for i in draw.permutation(len(documents))])
    stream = stream[draw.integers(CONTEXT) :]
    count = (len(stream) - 1) // CONTEXT
    cut = np.stack([stream[i * CONTEXT : (i + 1) * CONTEXT + 1] for i in range(count)])
    return np.asarray(cut[draw.permutation(count)], dtype=np.int64)


def learning_rate(step: int, share_done: float) -> float:
    """Linear warm-up over steps, then a cosine over the share of the budget, down to `FINAL_RATE_SHARE` of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share_done)))
    shape = FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * cosine
    return PEAK_RATE * shape * min(1.0, (step + 1) / WARM_UP_STEPS)


class Run:
    """A resumable training run in `WORK`."""

    def __init__(self, minutes: float, steps: int | None, from_shipped: bool = False) -> None:
        WORK.mkdir(parents=True, exist_ok=True)
        self.budget_seconds = minutes * 60
        self.budget_steps = steps
        self.tokenizer = self._tokenizer(from_shipped)
        self.documents = encode_all(self.tokenizer, docstrings.train_documents())
        self.validation = docstrings.held_out("validation")
        self.model = build_model()
        matrices = [p for name, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in name]
        others = [p for name, p in self.model.named_parameters() if p.dim() != 2 or "embed" in name]
        self.parameters = matrices + others
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.progress = Progress()
        self._resume(from_shipped)

    def share_done(self) -> float:
        if self.budget_steps is not None:
            return self.progress.step / self.budget_steps
        return self.progress.seconds / self.budget_seconds

    def go(self) -> None:
        """Train until the budget is used; keep the weights that score best on the validation documents."""
        next_evaluation = self.progress.seconds + SECONDS_BETWEEN_EVALUATIONS
        losses: list[float] = []
        epoch = -1
        windows: NDArray[np.int64] = np.empty((0, CONTEXT + 1), np.int64)
        while self.share_done() < 1:
            began = time.monotonic()
            per_epoch = self._batches_per_epoch()
            if epoch != self.progress.step // per_epoch:
                epoch = self.progress.step // per_epoch
                windows = windows_of_epoch(self.documents, epoch)
            at = (self.progress.step % per_epoch) * BATCH
            losses.append(self._step(torch.from_numpy(windows[at : at + BATCH])))
            self.progress.step += 1
            self.progress.seconds += time.monotonic() - began
            if self.progress.seconds >= next_evaluation or self.share_done() >= 1:
                self._evaluate(float(np.mean(losses)))
                next_evaluation, losses = self.progress.seconds + SECONDS_BETWEEN_EVALUATIONS, []

    def _batches_per_epoch(self) -> int:
        """The same for every phase: one window fewer than the longest cut has."""
        tokens = sum(len(d) + 1 for d in self.documents) - CONTEXT
        return ((tokens - 1) // CONTEXT) // BATCH

    def _step(self, windows: torch.Tensor) -> float:
        rate = learning_rate(self.progress.step, self.share_done())
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(input_ids=windows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def _evaluate(self, training_loss: float) -> None:
        bits = bits_per_byte(document_nats(self.model, self.tokenizer, self.validation), self.validation)
        point = {"step": self.progress.step, "seconds": round(self.progress.seconds, 1)}
        point |= {"training_nats_per_token": round(training_loss, 4), "validation_bits_per_byte": round(bits, 4)}
        self.progress.curve.append(point)
        print(json.dumps(point), flush=True)
        if bits < self.progress.best_bits_per_byte:
            self.progress.best_bits_per_byte = bits
            self._save("best", dict(self.model.named_parameters()))
        self._save("model", dict(self.model.named_parameters()))
        for number, optimizer in enumerate(self.optimizers):
            moments = optimizer.state_dict()["state"]
            flat = {f"{i}.{name}": value for i, found in moments.items() for name, value in found.items()}
            self._save(f"optimizer-{number}", flat)
        temporary = WORK / "progress.tmp"
        temporary.write_text(json.dumps(asdict(self.progress)))
        temporary.replace(WORK / "progress.json")

    def _save(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        temporary = WORK / f"{name}.tmp"
        save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, temporary)
        temporary.replace(WORK / f"{name}.safetensors")

    def _resume(self, from_shipped: bool) -> None:
        note = WORK / "progress.json"
        if not note.is_file():
            if from_shipped:
                self._begin_at_shipped()
            return
        self.progress = Progress(**json.loads(note.read_text()))
        self.model.load_state_dict(load_file(WORK / "model.safetensors"), strict=False)
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in load_file(WORK / f"optimizer-{number}.safetensors").items():
                index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def _begin_at_shipped(self) -> None:
        """Take the shipped weights and what they cost for a checkpoint; the optimisers start anew."""
        reported = json.loads((SHIPPED / "training.json").read_text())
        best = min(point["validation_bits_per_byte"] for point in reported["curve"])
        self.progress = Progress(reported["steps"], reported["seconds"], best, reported["curve"])
        self.model.load_state_dict(LlamaForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).state_dict())
        self._save("best", dict(self.model.named_parameters()))

    def _tokenizer(self, from_shipped: bool) -> Tokenizer:
        path = WORK / "tokenizer.json"
        if from_shipped and not path.is_file():
            Tokenizer.from_file(str(SHIPPED / "tokenizer.json")).save(str(path))
        if not path.is_file():
            train_tokenizer([d.text for d in docstrings.train_documents()]).save(str(path))
        return Tokenizer.from_file(str(path))


def encode_all(tokenizer: Tokenizer, documents: Sequence[Document]) -> list[NDArray[np.int64]]:
    """Token ids of each document, without a beginning or an end."""
    return [np.array(e.ids, dtype=np.int64) for e in tokenizer.encode_batch([d.text for d in documents])]


@torch.no_grad()
def document_nats(model: LlamaForCausalLM, tokenizer: Tokenizer, documents: Sequence[Document]) -> NDArray[np.float64]:
    """-log p of each document given `<|endoftext|>`, in nats; beyond CONTEXT tokens, windows that overlap by half.

    Every token of a document is scored once, the end of the document is not scored.
    """
    model.eval()
    totals = []
    for ids in encode_all(tokenizer, documents):
        tokens = torch.from_numpy(np.concatenate(([0], ids)))
        total, scored = 0.0, 1
        while scored < len(tokens):
            start = 0 if scored == 1 else scored - CONTEXT // 2
            window = tokens[start : start + CONTEXT + 1]
            logits = model(input_ids=window[None, :-1]).logits[0].float()
            nats = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
            total += float(nats[scored - start - 1 :].double().sum())
            scored = start + len(window)
        totals.append(total)
    model.train()
    return np.array(totals)


def bits_per_byte(nats: NDArray[np.float64], documents: Sequence[Document]) -> float:
    """Total bits over total UTF-8 bytes."""
    return float(nats.sum()) / math.log(2) / sum(len(d.text.encode()) for d in documents)


def gain_interval(
    nats: NDArray[np.float64], baseline: NDArray[np.float64], documents: Sequence[Document]
) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the bits per byte that a model saves, documents resampled in pairs."""
    size = len(documents)
    draws = np.random.default_rng(SEED).integers(0, size, (4000, size))
    lengths = np.array([len(d.text.encode()) for d in documents]) * math.log(2)
    saved = (baseline - nats)[draws].sum(axis=1) / lengths[draws].sum(axis=1)
    low, high = np.percentile(saved, [2.5, 97.5])
    return float(low), float(high)


def load_shipped(folder: Path = SHIPPED) -> tuple[LlamaForCausalLM, Tokenizer]:
    """The shipped weights (bfloat16 values computed with in float32) and their tokenizer."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def ship(tokenizer: Tokenizer) -> None:
    """Write the best weights as a stock Hugging Face folder in bfloat16.

    Raises:
        RuntimeError: the tokenizer, opened again from the folder, does not give a text back.
    """
    SHIPPED.mkdir(parents=True, exist_ok=True)
    model = build_model()
    model.load_state_dict(load_file(WORK / "best.safetensors"), strict=False)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0, max_new_tokens=64)
    model.to(torch.bfloat16).save_pretrained(SHIPPED)
    names = {"bos_token": END, "eos_token": END, "pad_token": END}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **names)
    wrapped.save_pretrained(SHIPPED)
    (SHIPPED / "model.safetensors").chmod(0o644)
    text = docstrings.held_out("validation")[0].text
    opened = AutoTokenizer.from_pretrained(SHIPPED)
    if opened.decode(opened(text)["input_ids"]) != text:
        raise RuntimeError(f"the tokenizer shipped in {SHIPPED} does not give its text back")


def score() -> dict[str, dict[str, float]]:
    """Held-out bits per byte of the shipped model and of a 5-gram model of the same tokens, by split, and the paired gain."""
    model, tokenizer = load_shipped()
    training = encode_all(tokenizer, docstrings.train_documents())
    five_gram = NGramModel.train(training, vocabulary=VOCABULARY, beginning=0)
    found: dict[str, dict[str, float]] = {}
    for split in ("validation", "test"):
        documents = docstrings.held_out(split)
        baseline = np.array([five_gram.nats(ids) for ids in encode_all(tokenizer, documents)])
        nats = document_nats(model, tokenizer, documents)
        low, high = gain_interval(nats, baseline, documents)
        found[split] = {
            "docs_llama": round(bits_per_byte(nats, documents), 4),
            "five_gram": round(bits_per_byte(baseline, documents), 4),
            "gain_low": round(low, 4),
            "gain_high": round(high, 4),
        }
    return found


def report(run: Run) -> dict[str, Any]:
    """What `training.json` says: the recipe, the curve, and the numbers measured on the shipped weights."""
    documents = docstrings.train_documents()
    counts = {"train": len(documents)} | {s: len(docstrings.held_out(s)) for s in ("validation", "test")}
    return {
        "corpus": {
            "packages": docstrings.corpus_versions(),
            "documents": counts,
            "tokens": sum(map(len, run.documents)),
        },
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "steps": run.progress.step,
        "tokens_seen": run.progress.step * BATCH * CONTEXT,
        "seconds": round(run.progress.seconds, 1),
        "threads": torch.get_num_threads(),
        "seed": SEED,
        "optimizer": {
            "name": "Muon; AdamW for embeddings and norms",
            "peak_rate": PEAK_RATE,
            "weight_decay": WEIGHT_DECAY,
            "batch": [BATCH, CONTEXT],
        },
        "curve": run.progress.curve,
        "bits_per_byte": score(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=32.0, help="training time in all, evaluations not counted")
    parser.add_argument("--steps", type=int, help="train this many steps instead; repeats a run exactly")
    parser.add_argument("--score", action="store_true", help="score the shipped weights and train nothing")
    parser.add_argument("--from-shipped", action="store_true", help="where there is no checkpoint, start here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.score:
        print(json.dumps(score(), indent=2))
        return
    run = Run(options.minutes, options.steps, options.from_shipped)
    run.go()
    ship(run.tokenizer)
    reported = report(run)
    (SHIPPED / "training.json").write_text(json.dumps(reported, indent=1) + "\n")
    print(json.dumps(reported["bits_per_byte"], indent=2))


if __name__ == "__main__":
    main()
