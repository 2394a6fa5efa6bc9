"""What reading activations costs, against plain formulations: ratios from one run, alternating repeats, medians.

    python benchmarks/activations.py [--threads 1] [--repeats 3] [--model embedded]

Three questions: what pooling adds to the bare pass it rides on, what the usual way costs (all hidden states kept, with the
head, in arrival order), and what the shared prefix saves. With `--model tiny` it runs offline in seconds: that shows that the
benchmark works, the ratios of so small a model mean nothing.
"""

import argparse
from collections.abc import Callable

import torch
from bench import medians
from torch import Tensor

from helpers.data import corpora
from helpers.data.splits import Example
from helpers.models import activations, encoding, loading
from helpers.models.activations import Activations
from helpers.models.encoding import Encoded, Plan

TEXTS, PLAIN_BATCH = 64, 8
DEPTHS = (0.25, 0.5, 0.75, 0.9)


def plan(origin: str) -> Plan:
    """Ordinary instructions, read at four depths."""
    rows = corpora.sample("instructions/test", TEXTS, origin)
    return Plan(tuple(Example("instructions", "test", 0, row.group, row.prompt) for row in rows), DEPTHS, 256)


@torch.no_grad()
def bare(language: loading.LanguageModel, encoded: Encoded, deepest: int, budget: int) -> None:
    """The pass alone: the same batches without prefix, up to the same layer, and nothing is read."""
    for indices in encoding.token_batches([len(row) for row in encoded.rows], budget):
        ids = loading.pad([encoded.rows[i] for i in indices], language.tokenizer.pad_token_id)
        with activations.reading(language.model, [deepest], lambda *_: None):
            language.model.model(input_ids=ids, use_cache=False)


@torch.no_grad()
def plain(language: loading.LanguageModel, encoded: Encoded) -> list[tuple[Tensor, ...]]:
    """Hidden states as the documentation of transformers gives them: the whole model, eight texts at a time, all kept."""
    kept = []
    for start in range(0, len(encoded.rows), PLAIN_BATCH):
        rows = encoded.rows[start : start + PLAIN_BATCH]
        ids, mask = loading.pad(rows, language.tokenizer.pad_token_id), loading.pad([[1] * len(row) for row in rows], 0)
        kept.append(language.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states)
    return kept


def held(found: Activations | list[tuple[Tensor, ...]]) -> int:
    """Bytes that a result keeps alive."""
    tensors = found.pooled.values() if isinstance(found, Activations) else [state for states in found for state in states]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def show(name: str, value: float, goal: float, most: bool) -> None:
    """One line of the table: a ratio beside its goal."""
    met = value <= goal if most else value >= goal
    print(f"{name:60} {value:8.2f}  {'<=' if most else '>='} {goal:.2f} {'met' if met else 'MISSED'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", choices=list(loading.MODELS), default="embedded")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    language, reading = loading.load(loading.base_folder(options.model)), plan(options.model)
    encoded = encoding.encode(language.tokenizer, reading)
    deepest, shared = activations.layers(DEPTHS, language.depth)[-1], encoding.shared_prefix(encoded)
    tokens = sum(map(len, encoded.rows))
    runs: dict[str, Callable[[], object]] = {
        "on": lambda: activations.read(language, reading),
        "off": lambda: activations.read(language, reading, share=False),
        "bare": lambda: bare(language, encoded, deepest, reading.budget),
        "plain": lambda: plain(language, encoded),
    }
    took = medians(runs, options.repeats)
    clock = "CPU" if options.threads == 1 else "wall-clock"
    print(f"{options.model}, {options.threads} thread(s), median of {options.repeats} alternating runs, {clock} seconds")
    print(f"{TEXTS} texts, {tokens} tokens, the first {shared} of each are shared; {deepest} of {language.depth} blocks\n")
    show("reading without prefix, over the bare pass", took["off"] / took["bare"], 1.02, most=True)
    show("all hidden states and head, over reading: time", took["plain"] / took["on"], 2.0, most=False)
    show("all hidden states and head, over reading: bytes kept", held(runs["plain"]()) / held(runs["on"]()), 20.0, most=False)
    print(f"{'reading with prefix, over reading without':60} {took['on'] / took['off']:8.2f}")
    print(f"\nreading, tokens per second: {tokens / took['on']:.0f} with prefix, {tokens / took['off']:.0f} without")


if __name__ == "__main__":
    main()
