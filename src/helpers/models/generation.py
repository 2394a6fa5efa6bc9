"""Greedy replies and reply likelihoods, in batches that are the same for every variant."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from helpers.console import over
from helpers.models import shared_prefix
from helpers.models.loading import (
    LanguageModel,
    backbone,
    causal,
    chat_text,
    check_ids,
    encode_text,
    length_batches,
    logits,
    pad,
)

Ended = Callable[[str], bool]


def replies(
    language: LanguageModel, prompts: Sequence[str], systems: Sequence[str] | None = None, new_tokens: int = 16, batch: int = 32,
    ended: Ended | None = None, whole: bool = False,
) -> list[str]:  # fmt: skip
    """The greedy reply to each prompt in the model's chat template, of at most `new_tokens` tokens; the rest as `completions`."""
    pairs = zip(prompts, systems or [""] * len(prompts), strict=True)
    texts = [chat_text(language.tokenizer, prompt, system) for prompt, system in pairs]
    return completions(language, texts, new_tokens, batch, ended, whole)


@torch.no_grad()
def completions(
    language: LanguageModel, texts: Sequence[str], new_tokens: int = 16, batch: int = 32, ended: Ended | None = None,
    whole: bool = False,
) -> list[str]:  # fmt: skip
    """The greedy continuation of each text as it stands, of at most `new_tokens` tokens, special tokens removed.

    Texts are sorted by length and padded on the left; the batches depend on the texts alone, because bf16 results depend on
    the batch a text sits in. What all texts open with is read once, and a row leaves its batch at its end of turn, or as soon
    as `ended(reply so far)` holds. `whole` reads every text in full and keeps every row to the end: for who watches the passes.
    """
    rows = [encode_text(language.tokenizer, text) for text in texts]
    check_ids(language, rows)
    found, past = [""] * len(rows), shared_prefix.empty(language)
    apart = whole or not rows or shared_prefix.beyond_window(language, max(map(len, rows)) + new_tokens)
    shared = 0 if apart else shared_prefix.common(rows)
    shared_prefix.fill(language, past, rows[0][:shared] if shared else ())
    for indices in over("batches", length_batches([len(row) for row in rows], batch)):
        cache = shared_prefix.copies(past, len(indices))
        said = _greedy(language, [rows[i][shared:] for i in indices], cache, new_tokens, ended, whole)
        for i, reply in zip(indices, language.tokenizer.batch_decode(said, skip_special_tokens=True), strict=True):
            found[i] = reply
    return found


def _greedy(
    language: LanguageModel, rows: Sequence[Sequence[int]], cache, new_tokens: int, ended: Ended | None, whole: bool
) -> list[list[int]]:
    """The likeliest tokens one after the other, of rows that stand behind what the cache holds; it is used up."""
    tokenizer, network = language.tokenizer, causal(language.model)
    said: list[list[int]] = [[] for _ in rows]
    ids, mask, places = _padded(rows, cache.get_seq_length(), tokenizer.pad_token_id, language.device)
    left, done = list(range(len(rows))), set()
    while True:
        states = backbone(network)(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        ).last_hidden_state
        # contiguous: of a strided slice the head's product copies the whole vocabulary matrix for every row
        chosen = logits(network, states[:, -1].contiguous()).argmax(-1).tolist()
        for row, token in zip(left, chosen, strict=True):
            if row not in done:
                said[row].append(token)
                done |= {row} if token == tokenizer.eos_token_id or (ended and ended(tokenizer.decode(said[row]))) else set()
        if len(done) == len(rows) or max(map(len, said)) >= new_tokens:
            return said
        kept = [i for i, row in enumerate(left) if whole or row not in done]
        ids = torch.tensor([[tokenizer.pad_token_id if left[i] in done else chosen[i]] for i in kept], device=language.device)
        if len(kept) < len(left):
            cache.batch_select_indices(torch.tensor(kept, device=language.device))
        left, places = [left[i] for i in kept], places[kept, -1:] + 1
        mask = torch.cat([mask[kept], torch.ones_like(ids)], 1)


def _padded(rows: Sequence[Sequence[int]], held: int, fill: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids padded on the left, their attention mask behind `held` tokens that are all real, and their positions."""
    own = pad([[1] * len(row) for row in rows], 0, "left")
    mask = torch.cat([torch.ones(len(rows), held, dtype=own.dtype), own], 1)
    places = (mask.cumsum(1) - 1).clamp(min=0)[:, held:]
    return pad(rows, fill, "left").to(device), mask.to(device), places.to(device)


@torch.no_grad()
def log_likelihoods(
    language: LanguageModel, rows: Sequence[Sequence[int]], starts: Sequence[int], batch: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of log-probabilities of the tokens from `start` on, and their number, for each row of token ids.

    The backbone runs once; the head runs at the scored positions only.
    """
    total, count = np.zeros(len(rows)), np.zeros(len(rows), dtype=int)
    network = causal(language.model)
    for indices in over("batches", length_batches([len(row) for row in rows], batch)):
        ids = pad([rows[i] for i in indices], language.tokenizer.pad_token_id).to(language.device)
        hidden = backbone(network)(input_ids=ids, use_cache=False).last_hidden_state
        for place, i in enumerate(indices):
            span = slice(starts[i] - 1, len(rows[i]) - 1)
            picked = nn.functional.cross_entropy(
                logits(network, hidden[place, span]), ids[place, starts[i] : len(rows[i])], reduction="sum"
            )
            total[i], count[i] = -picked.item(), len(rows[i]) - starts[i]
    return total, count
