"""Greedy replies and reply likelihoods, in batches that are the same for every variant."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from helpers.models import LanguageModel, chat_text, encode, length_batches, logits, pad
from helpers.progress import over

Progress = Callable[[int], None]


@contextmanager
def contiguous_head(model: nn.Module) -> Iterator[None]:
    """Runs the block with a contiguous input to the head.

    Of a prompt pass, generation hands the head a strided slice of the last positions; the product then copies the whole
    vocabulary matrix once for every row of the batch, which took longer than the rest of a short reply.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def replies(
    language: LanguageModel, prompts: Sequence[str], systems: Sequence[str] | None = None, new_tokens: int = 16, batch: int = 32,
    progress: Progress | None = None,
) -> list[str]:  # fmt: skip
    """The greedy reply to each prompt in the model's chat template, of at most `new_tokens` tokens."""
    pairs = zip(prompts, systems or [""] * len(prompts), strict=True)
    texts = [chat_text(language.tokenizer, prompt, system) for prompt, system in pairs]
    return completions(language, texts, new_tokens, batch, progress)


@torch.no_grad()
def completions(
    language: LanguageModel, texts: Sequence[str], new_tokens: int = 16, batch: int = 32, progress: Progress | None = None
) -> list[str]:
    """The greedy continuation of each text as it stands, of at most `new_tokens` tokens, special tokens removed.

    Texts are sorted by length and padded on the left; the batches depend on the texts alone, because bf16 results depend on
    the batch a text sits in.
    """
    tokenizer = language.tokenizer
    rows = [encode(tokenizer, text) for text in texts]
    found = [""] * len(rows)
    for indices in over("batches", length_batches([len(row) for row in rows], batch)):
        ids = pad([rows[i] for i in indices], tokenizer.pad_token_id, "left").to(language.device)
        mask = pad([[1] * len(rows[i]) for i in indices], 0, "left").to(language.device)
        with contiguous_head(language.model):
            out = language.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, use_cache=True
            )
        for i, reply in zip(indices, tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True), strict=True):
            found[i] = reply
        if progress:
            progress(len(indices))
    return found


@torch.no_grad()
def log_likelihoods(
    language: LanguageModel, rows: Sequence[Sequence[int]], starts: Sequence[int], batch: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of log-probabilities of the tokens from `start` on, and their number, for each row of token ids.

    The backbone runs once; the head runs at the scored positions only.
    """
    total, count = np.zeros(len(rows)), np.zeros(len(rows), dtype=int)
    causal = language.model.get_base_model() if hasattr(language.model, "get_base_model") else language.model
    for indices in over("batches", length_batches([len(row) for row in rows], batch)):
        ids = pad([rows[i] for i in indices], language.tokenizer.pad_token_id).to(language.device)
        hidden = causal.model(input_ids=ids, use_cache=False).last_hidden_state
        for place, i in enumerate(indices):
            span = slice(starts[i] - 1, len(rows[i]) - 1)
            picked = nn.functional.cross_entropy(
                logits(causal, hidden[place, span]), ids[place, starts[i] : len(rows[i])], reduction="sum"
            )
            total[i], count[i] = -picked.item(), len(rows[i]) - starts[i]
    return total, count
