"""What this machine's compute costs: `auto` against bf16, and against float32, for the three kinds of work of the study.

    python benchmarks/compute.py [--threads 1] [--repeats 3] [--model embedded]

Where a machine has units for bf16, auto is bf16 and its ratio to it is 1; on one without, bf16 is emulated and auto is float32.
The pieces are small, since emulated bf16 may take minutes for what float32 does in seconds.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from bench import examples, medians, our_step

from helpers.data import corpora
from helpers.models import compute, generation, loading

ROWS, PROMPTS, NEW = 2, 8, 4  # rows of a training step; prompts of a pass, and tokens of their replies


def within(asked: str, work: Callable[[], object]) -> Callable[[], object]:
    """The same work, in a compute."""

    def run() -> None:
        with compute.using(asked):
            work()

    return run


@torch.no_grad()
def forward(language: loading.LanguageModel, ids: torch.Tensor) -> None:
    """One pass of the prompts, without the head."""
    language.model.model(input_ids=ids, use_cache=False)


def pieces(folder: Path, origin: str, asked: str) -> dict[str, Callable[[], object]]:
    """A forward pass, a LoRA step and some replies, each in a compute."""
    with compute.using(asked):
        language, batch = loading.load(folder), examples(loading.load(folder), origin)[:ROWS]
        step = our_step(folder, batch, "lora")
    prompts = [row.prompt for row in corpora.sample("instructions/test", PROMPTS, origin)]
    rows = [loading.encode_text(language.tokenizer, loading.chat_text(language.tokenizer, prompt), 48) for prompt in prompts]
    ids = loading.pad(rows, language.tokenizer.pad_token_id)
    return {
        "forward": within(asked, lambda: forward(language, ids)),
        "LoRA step": within(asked, step),
        "generation": within(asked, lambda: generation.replies(language, prompts, new_tokens=NEW)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", choices=list(loading.MODELS), default="embedded")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    auto = compute.resolve("auto")
    print(f"{options.model}, {options.threads} thread(s), median of {options.repeats} alternating runs; {auto.words}\n")
    folder = loading.base_folder(options.model)
    made = {asked: pieces(folder, options.model, asked) for asked in ("auto", "bf16", "fp32")}
    print(f"{'':12} {'auto s':>8} {'bf16 s':>8} {'fp32 s':>8}  auto/bf16  auto/fp32")
    for name in made["auto"]:
        took = medians({asked: runs[name] for asked, runs in made.items()}, options.repeats)
        ratios = f"{took['auto'] / took['bf16']:9.2f}  {took['auto'] / took['fp32']:9.2f}"
        print(f"{name:12} {took['auto']:8.3f} {took['bf16']:8.3f} {took['fp32']:8.3f}  {ratios}", flush=True)


if __name__ == "__main__":
    main()
