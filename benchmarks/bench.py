"""How fast the hot paths are against their plain formulations: ratios from one run, alternating repeats, medians.

    python benchmarks/bench.py [--threads 1] [--repeats 5] [--model embedded]

Absolute times depend on the machine and on what else it does; a ratio of alternating runs much less. With `--model tiny`
it runs offline in seconds: that shows that the benchmark works, the ratios of so small a model mean nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from helpers.data import corpora
from helpers.models import compute, loading
from helpers.updates import quantizers, training

TOKENS, BATCH = 96, 8  # of a training step: rows of about 96 tokens, 8 at a time
PROMPTS = 64  # of a forward pass


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each run: one round to warm up, then the runs take turns, so that a busy moment meets all of them."""
    # on one thread CPU time is the work itself, whatever else the machine does; several threads also spin while they wait
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = clock()
            run()
            if repeat:
                times[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def examples(language: loading.LanguageModel, origin: str) -> list[training.TokenizedRow]:
    """One batch of fine-tuning rows, those of them nearest to TOKENS tokens."""
    rows = corpora.mix("dialogue", 64, origin=origin)
    return sorted(training.examples(language.tokenizer, rows, 320), key=lambda example: abs(len(example.ids) - TOKENS))[:BATCH]


# ---------------------------------------------------------------- the pairs


def our_step(folder: Path, batch: list[training.TokenizedRow], kind: str) -> Callable[[], object]:
    """One training step of the study's own loop."""
    language = loading.load(folder, "bf16" if kind == "lora" else "fp32")
    recipe = training.Recipe(kind=kind, lr=1e-5)
    model = training.trainable(language, recipe)
    loop = training.Loop(model, recipe, 10**6, None, 60.0)
    return lambda: loop.advance(training.reply_loss, batch, language.tokenizer.pad_token_id, language.device)


def plain_step(folder: Path, batch: list[training.TokenizedRow]) -> Callable[[], object]:
    """One step of PEFT as its documentation writes it: float32 adapters, attention mask, the loss of the whole model."""
    from peft import LoraConfig, get_peft_model

    language = loading.load(folder)
    names = quantizers.linear_names(language.model)
    model = get_peft_model(language.model, LoraConfig(r=8, lora_alpha=16, target_modules=names, task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    ids = loading.pad([example.ids for example in batch], language.tokenizer.pad_token_id)
    mask = loading.pad([[1] * len(example.ids) for example in batch], 0)
    labels = loading.pad([[-100] * example.start + list(example.ids[example.start :]) for example in batch], -100)

    def step() -> None:
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.no_grad()
def _forward(model: nn.Module, rows: list[list[int]], batches: list[list[int]], masked: bool) -> None:
    for indices in batches:
        ids = loading.pad([rows[i] for i in indices], 2)
        mask = loading.pad([[1] * len(rows[i]) for i in indices], 0) if masked else None
        model(input_ids=ids, attention_mask=mask, use_cache=False)


def forwards(language: loading.LanguageModel, origin: str) -> dict[str, Callable[[], object]]:
    """All prompts once: length-sorted and without head (as the study does it), and in arrival order with head."""
    prompts = [row.prompt for row in corpora.sample("instructions/test", PROMPTS, origin)]
    rows = [loading.encode_text(language.tokenizer, loading.chat_text(language.tokenizer, prompt)) for prompt in prompts]
    arrival = [list(range(start, min(start + 32, len(rows)))) for start in range(0, len(rows), 32)]
    ordered = loading.length_batches([len(row) for row in rows], 32)
    return {
        "ours": lambda: _forward(language.model.model, rows, ordered, masked=False),
        "plain": lambda: _forward(language.model, rows, arrival, masked=True),
    }


def four_bit(folder: Path, tokens: int) -> dict[str, Callable[[], object]]:
    """One forward of 8 rows of `tokens` tokens through NF4: weights dequantized once, and the real 4-bit modules."""
    ours, plain = loading.load(folder).model, loading.load(folder).model
    quantizers.apply_dequantized(ours, quantizers.quantize_model(ours, "nf4"))
    quantizers.to_bitsandbytes_(plain, "nf4")
    ids = torch.randint(3, 259, (BATCH, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    whole = [list(range(BATCH))]
    return {
        "ours": lambda: _forward(ours.model, ids, whole, masked=False),
        "plain": lambda: _forward(plain.model, ids, whole, masked=False),
    }


# ---------------------------------------------------------------- the table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", choices=list(loading.MODELS), default="embedded")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    folder = loading.base_folder(options.model)
    language = loading.load(folder)
    batch = examples(language, options.model)
    tokens = sum(len(example.ids) for example in batch)
    replies = tokens - sum(example.start for example in batch)
    clock = "CPU" if options.threads == 1 else "wall-clock"
    print(f"{options.model}, {options.threads} thread(s), median of {options.repeats} alternating runs, {clock} seconds")
    print(compute.current().words)
    print(f"training batch: {len(batch)} rows, {tokens} tokens, {replies} of them replies\n")
    print(f"{'':44} {'ours s':>8} {'plain s':>8} {'ratio':>6}  goal")
    pairs = {
        "LoRA step, against PEFT's default": (
            {"ours": our_step(folder, batch, "lora"), "plain": plain_step(folder, batch)},
            0.60,
        ),
        "prompt forward, against arrival order + head": (forwards(language, options.model), None),
        "NF4 prompt forward, against Linear4bit": (four_bit(folder, 64), None),
        "NF4 one-token step, against Linear4bit": (four_bit(folder, 1), None),
    }
    for name, (runs, goal) in pairs.items():
        took = medians(runs, options.repeats)
        ratio = took["ours"] / took["plain"]
        met = "" if goal is None else f"<= {goal:.2f} {'met' if ratio <= goal else 'MISSED'}"
        print(f"{name:44} {took['ours']:8.3f} {took['plain']:8.3f} {ratio:6.2f}  {met}", flush=True)
    took = medians({"full": our_step(folder, batch, "full"), "lora": our_step(folder, batch, "lora")}, options.repeats)
    print(f"\ntraining, tokens per second: full {tokens / took['full']:.0f}, LoRA {tokens / took['lora']:.0f}")


if __name__ == "__main__":
    main()
