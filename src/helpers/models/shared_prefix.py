"""The tokens that all texts open with, such as the system prompt of a chat template: read once, then started from.

Their keys and values are computed in one pass of one row, and every batch begins with a copy of them. In bf16 the numbers
differ by rounding from those of a pass that reads each text whole, so all variants must be read the same way.
"""

from collections.abc import Sequence
from copy import deepcopy
from itertools import takewhile

import torch

from helpers.models.loading import LanguageModel, backbone, causal


def common(rows: Sequence[Sequence[int]], room: int | None = None) -> int:
    """The number of tokens that all rows open with, at most `room`; at least one token is left to each row."""
    room = min(len(row) - 1 for row in rows) if room is None else room
    columns = zip(*(row[:room] for row in rows), strict=True)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def empty(language: LanguageModel):
    """A cache that holds nothing yet."""
    from transformers import DynamicCache

    return DynamicCache(config=causal(language.model).config)


def beyond_window(language: LanguageModel, length: int) -> bool:
    """Whether a layer looks back less far than so many tokens; padding behind a shared prefix then pushes it out of sight."""
    return any((getattr(layer, "sliding_window", None) or length) < length for layer in empty(language).layers)


@torch.no_grad()
def fill(language: LanguageModel, past, ids: Sequence[int]) -> None:
    """Reads tokens, as one row, into a cache: their keys and values are there afterwards."""
    if ids:
        backbone(language.model)(input_ids=torch.tensor([ids], device=language.device), past_key_values=past, use_cache=True)


def copies(past, count: int):
    """The cache once for each row of a batch; a copy, because a pass adds its own keys and values to what it is given."""
    found = deepcopy(past)
    if found.get_seq_length():
        found.batch_repeat_interleave(count)
    return found
