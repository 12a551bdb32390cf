"""A pare language model under EleutherAI's lm-evaluation-harness: tasks from local files, any engine, nothing looked up.

The harness is imported when it is asked for. Prompts, tokens and windows are those of its own Hugging Face backend, so that an
unchanged model gets the number that backend gives.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, Any

from compress.errors import DataError, UserError
from compress.files.user_paths import expanded
from compress.machine.deps import need
from compress.opening.token_range import be_known

if TYPE_CHECKING:
    import torch
    from lm_eval.tasks import TaskManager

    from compress.opening.models import LanguageModel

NEW_TOKENS = 256  # the harness' own default for a task that does not say
LOCAL = ("json", "csv", "parquet", "arrow", "text")  # what `datasets` reads from files
Pair = tuple[tuple[str, str], list[int], list[int]]  # texts, context's tokens, answer's tokens


def load_tasks(paths: Sequence[str]) -> dict[str, Any]:
    """The harness' tasks by name: all of each folder, or what a YAML file names.

    Raises:
        MissingLibrary: the harness is not installed.
        DataError: a path holds no task, one that does not load, or one whose documents are not local files.
    """
    need("lm_eval", "lm-eval")
    manager_of = importlib.import_module("lm_eval.tasks").TaskManager
    found: dict[str, Any] = {}
    for path in paths:
        place = expanded(path)
        if not place.exists():
            raise DataError("is no task", place=path, fix="give a folder of the harness' YAML files, or one of them")
        manager = manager_of(include_defaults=False, include_path=str(place if place.is_dir() else place.parent))
        names = [str(place)] if place.is_file() else list(manager.all_subtasks)
        if not names:
            raise DataError("holds no task that reads", place=path, fix="give a YAML file with `task: NAME`")
        _refuse_remote(path, manager)
        try:
            with redirect_stderr(io.StringIO()):  # its progress bars
                found |= manager.load(names)["tasks"]
        except Exception as error:  # whatever the harness, `datasets` and a task's own code may raise
            raise DataError(f"does not load: {error}", place=path, fix="see the harness' guide to new tasks") from error
    return found


def run_tasks(
    model: LanguageModel, tasks: dict[str, Any], few_shot: int, limit: int | None, seed: int
) -> dict[str, list[Any]]:
    """The harness' record of each document, by task.

    Args:
        model: a `TextGeneration`.
        limit: documents of each task; None: all.
        seed: of which examples are shown.
    """
    evaluator = importlib.import_module("lm_eval.evaluator")
    base = importlib.import_module("lm_eval.api.model").TemplateLM
    for task in tasks.values():
        task.set_config("num_fewshot", few_shot)
        task.set_fewshot_seed(seed)
    adapter = type("Adapter", (Answering, base), {})(model)
    with redirect_stderr(io.StringIO()):
        found = evaluator.evaluate(adapter, {"tasks": tasks}, limit=limit, bootstrap_iters=0, log_samples=True)
    samples: dict[str, list[Any]] = found["samples"]
    return samples


def _refuse_remote(path: str, manager: TaskManager) -> None:
    for name, entry in manager.task_index.items():
        for dataset in _values(entry.cfg, "dataset_path"):
            if dataset not in LOCAL and not expanded(dataset).exists():
                raise DataError(
                    f"the task {name} takes its documents from {dataset}",
                    place=path,
                    fix="save them to a file: dataset_path: json, dataset_kwargs: {data_files: {test: FILE}}",
                )
        for file in _leaves(list(_values(entry.cfg, "data_files"))):
            if "://" in file:
                raise DataError(f"the task {name} reads {file}", place=path, fix="save it to a file and name that")


def _values(node: object, key: str) -> Iterator[Any]:
    """What stands under a key, at any depth."""
    if isinstance(node, dict):
        if node.get(key):
            yield node[key]
        node = list(node.values())
    for inner in node if isinstance(node, list) else ():
        yield from _values(inner, key)


def _leaves(node: object) -> Iterator[str]:
    """Every value of nested lists and dictionaries, as text."""
    if isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _leaves(inner)
    else:
        yield str(node)


class Answering:
    """What the harness asks of a model. Stands in front of its `TemplateLM`, which tokenizes pairs and calls these."""

    def __init__(self, task: LanguageModel) -> None:
        super().__init__()
        self.task = task
        self.tokenizer = task.tokenizer

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before an answer without a question."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """As the tokenizer itself does, but for a text that already begins with its first token."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        tokens: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False)
        be_known(self.task.known, self.tokenizer, string, tokens)
        return tokens

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: object) -> list[tuple[float, bool]]:
        """Of each answer its log-probability, and whether greedy decoding would give it. Long questions lose their start."""
        room = self.task.max_tokens
        rows = [(context + answer)[-(room + 1) :] for _, context, answer in requests]
        found: dict[int, tuple[float, bool]] = {}
        for batch in self.task.batches([len(row) for row in rows]):
            logits = self.task.logits([rows[i][:-1] for i in batch])
            for place, index in enumerate(batch):
                answer = requests[index][2]
                if len(answer) > room:
                    raise UserError(f"an answer of {len(answer)} tokens does not fit into {room}", fix="drop its task")
                found[index] = _scored(logits[place, : len(rows[index]) - 1], answer)
        return [found[i] for i in range(len(rows))]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: object) -> list[float]:
        """Log-probability of each whole text, in windows of the model's length that do not overlap."""
        windows = importlib.import_module("lm_eval.utils")
        found = []
        for request in requests:
            rolled = windows.get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.task.max_tokens, 1
            )
            pairs = [(("", ""), *windows.make_disjoint_window(window)) for window in rolled]
            found.append(sum(nats for nats, _ in self._loglikelihood_tokens(pairs)))
        return found

    def generate_until(self, requests: Sequence[Any], **_: object) -> list[str]:
        """Each prompt continued greedily, up to the first of the texts it stops at."""
        return [self._written(*request.args) for request in requests]

    def _written(self, prompt: str, asked: dict[str, Any]) -> str:
        message = importlib.import_module("lm_eval.models.utils")
        arguments = message.normalize_gen_kwargs(asked, NEW_TOKENS)
        most, room = int(arguments["max_gen_toks"]), self.task.max_tokens
        if arguments["do_sample"]:
            raise UserError("the task samples its answers", fix="set do_sample: false in its generation_kwargs")
        if most >= room:
            raise UserError(
                f"the task asks for {most} tokens, and the model has room for {room} with the question",
                fix="set max_gen_toks in its generation_kwargs",
            )
        tokens = self.tok_encode(prompt)[-(room - most) :] or [self.prefix_token_id]
        text = self.tokenizer.decode(self.task.complete(tokens, most), skip_special_tokens=True)
        stops = message.handle_stop_sequences(arguments["until"], eos=self.tokenizer.decode(self.eot_token_id))
        answer: str = message.postprocess_generated_text(text, stops, None)
        return answer


def _scored(logits: torch.Tensor, answer: list[int]) -> tuple[float, bool]:
    """Log-probability of the tokens that the last of `logits` [positions, vocabulary] foretell, and whether each is the likeliest."""
    message = logits[len(logits) - len(answer) :].float().log_softmax(-1)
    nats = sum(float(message[i, token]) for i, token in enumerate(answer))
    return nats, message.argmax(-1).tolist() == answer
