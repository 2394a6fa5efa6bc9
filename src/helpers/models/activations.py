"""Activations: what a model holds of each text at chosen depths, read in one forward pass and pooled as it goes by.

Layer l is the residual stream after l blocks, 1 <= l <= depth. Below the depth this is `hidden_states[l]` of transformers;
at the depth transformers gives the state after the final norm, and this module the one before it, like at every other layer.

The tokens that all texts of a plan open with run once, and every batch starts from a copy of their keys and values.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from helpers.console import over
from helpers.errors import REFUSED, StudyError
from helpers.models import shared_prefix as models_shared_prefix
from helpers.models.encoding import Encoded, Plan, encode, shared_prefix, token_batches
from helpers.models.formats.decoders import text_config
from helpers.models.loading import LanguageModel, backbone, blocks, check_ids, pad

POOLINGS = ("last", "mean")  # the last token of all; the mean over the tokens of the content
Sink = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Activations:
    """The pooled activations of a plan's texts in float32, rows in the order of the plan, and the tokens that were asked for.

    pooled: `mean/15` -> [n d_model]. tokens: `harmful-request/15` -> [tokens d_model] as computed, content of that task's texts,
    one after the other; those of its i-th text are offsets[i] to offsets[i + 1]. counts: texts, tokens, cut, prefix (tokens that
    all texts open with). What `stored` returns is mapped from its file: memory is taken by what is touched.
    """

    layers: tuple[int, ...]
    pooled: dict[str, Float[Tensor, "n d_model"]]
    tokens: dict[str, Float[Tensor, "tokens d_model"]]
    offsets: dict[str, np.ndarray]
    counts: dict[str, int]


def layers(depths: Sequence[float], depth: int) -> tuple[int, ...]:
    """The layers at fractions of a network of `depth` blocks: round(fraction * depth), at least 1; equal ones merged."""
    wrong = [fraction for fraction in depths if not 0 < fraction <= 1]
    if wrong or not depths:
        raise StudyError(f"depths {wrong[0] if wrong else 'is empty'}; give fractions of the network above 0, at most 1")
    return tuple(sorted({max(1, round(fraction * depth)) for fraction in depths}))


# ---------------------------------------------------------------- the pass


class _Deep(Exception):
    """Ends a pass at the deepest layer that is read."""


@contextmanager
def reading(model: nn.Module, recorded: Sequence[int], sink: Sink) -> Iterator[None]:
    """Runs one pass in which `sink(layer, hidden)` is given the states of the recorded layers; the deepest one ends it.

    Put a single call of the model into the block: what follows it there does not run. Afterwards no hook is left.
    """
    found, deepest = blocks(model), max(recorded)

    def hook(layer: int, module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        sink(layer, output[0] if isinstance(output, tuple) else output)
        if layer == deepest:
            raise _Deep

    with ExitStack() as hooks, suppress(_Deep):
        for layer in recorded:
            hooks.callback(found[layer - 1].register_forward_hook(partial(hook, layer)).remove)
        yield


@dataclass(frozen=True)
class _Batch:
    """Some texts as one padded matrix without their shared prefix, with the places of their content in it."""

    indices: list[int]
    ids: Int[Tensor, "batch position"]
    spans: list[slice]
    content: Float[Tensor, "batch position"]  # 1 at the tokens of the content
    last: Int[Tensor, " batch"]


def _batch(encoded: Encoded, indices: list[int], shared: int, fill: int, device: torch.device) -> _Batch:
    rows = [encoded.rows[i][shared:] for i in indices]
    spans = [slice(encoded.starts[i] - shared, encoded.stops[i] - shared) for i in indices]
    ids = pad(rows, fill)  # on the right: no token of a causal model sees what follows it, so no mask is needed
    content = torch.zeros(ids.shape)
    for place, span in enumerate(spans):
        content[place, span] = 1
    last = torch.tensor([len(row) - 1 for row in rows])
    return _Batch(indices, ids.to(device), spans, content.to(device), last.to(device))


@dataclass(frozen=True)
class _Kept:
    """What is kept of the passes: pooled rows by `pooling/layer`, and by (task, layer) the tokens of each text."""

    tasks: list[str]
    pooled: dict[str, Float[Tensor, "n d_model"]]
    tokens: dict[tuple[str, int], dict[int, Tensor]]

    def add(self, batch: _Batch, layer: int, hidden: Float[Tensor, "batch position d_model"]) -> None:
        """Keeps what is asked for of one layer's states; the states themselves go with the batch."""
        if f"mean/{layer}" in self.pooled:
            rows = torch.arange(len(batch.indices), device=hidden.device)
            # in float32: a bf16 sum over a hundred tokens keeps two digits
            total = torch.bmm(batch.content[:, None], hidden.float())[:, 0]
            self.pooled[f"mean/{layer}"][batch.indices] = total / batch.content.sum(1, keepdim=True)
            self.pooled[f"last/{layer}"][batch.indices] = hidden[rows, batch.last].float()
        for row, i in enumerate(batch.indices):
            if (self.tasks[i], layer) in self.tokens:  # a copy: a view would keep the whole batch alive
                self.tokens[self.tasks[i], layer][i] = hidden[row, batch.spans[row]].to("cpu", copy=True)


def _room(language: LanguageModel, plan: Plan) -> _Kept:
    """The places for everything that the plan asks for."""
    tasks = [example.task for example in plan.examples]
    absent = [task for task, _ in plan.tokens if task not in tasks]
    if absent:
        raise StudyError(f"tokens of task {absent[0]!r} are asked for, but the plan has no text of it; add some")
    names = [f"{pooling}/{layer}" for layer in layers(plan.depths, language.depth) for pooling in POOLINGS]
    pooled = {name: torch.empty(len(tasks), language.width, device=language.device) for name in names}
    return _Kept(tasks, pooled, {(task, layers((depth,), language.depth)[0]): {} for task, depth in plan.tokens})


@torch.no_grad()
def read(language: LanguageModel, plan: Plan, share: bool = True) -> Activations:
    """The activations of a plan's texts on a model: every depth, both poolings and the kept tokens from one pass.

    Refuses NaN and infinity by layer. `share=False` computes the shared prefix anew for each text: the same numbers up to
    rounding, more slowly.
    """
    network, context = backbone(language.model), getattr(text_config(language.model), "max_position_embeddings", None)
    encoded, kept = encode(language.tokenizer, plan, context), _room(language, plan)
    check_ids(language, encoded.rows)
    pooled_at = layers(plan.depths, language.depth)
    recorded = sorted({*pooled_at, *(layer for _, layer in kept.tokens)})
    shared = shared_prefix(encoded) if share else 0
    past = models_shared_prefix.empty(language)
    with reading(language.model, recorded, lambda *_: None):
        models_shared_prefix.fill(language, past, encoded.rows[0][:shared])
    for indices in over("batches", token_batches([len(row) - shared for row in encoded.rows], plan.budget)):
        batch = _batch(encoded, indices, shared, language.tokenizer.pad_token_id, language.device)
        with reading(language.model, recorded, partial(kept.add, batch)):
            held = models_shared_prefix.copies(past, len(indices)) if shared else None
            network(input_ids=batch.ids, past_key_values=held, use_cache=bool(shared))
    _finite(kept)
    pooled = {name: rows.cpu() for name, rows in kept.pooled.items()}
    counts = {"texts": len(encoded.rows), "tokens": sum(map(len, encoded.rows)), "cut": encoded.cut, "prefix": shared}
    return Activations(pooled_at, pooled, *_joined(kept.tokens), counts)


def _joined(found: dict[tuple[str, int], dict[int, Tensor]]) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """The kept tokens of each task in the order of the plan, and where each text's begin."""
    ordered = {f"{task}/{layer}": [texts[i] for i in sorted(texts)] for (task, layer), texts in found.items()}
    offsets = {name: np.cumsum([0, *map(len, texts)], dtype=np.int64) for name, texts in ordered.items()}
    return {name: torch.cat(texts) for name, texts in ordered.items()}, offsets


def _finite(kept: _Kept) -> None:
    """Refuses NaN and infinity, the lowest layer first: a probe would silently score such a row as anything."""
    found = [(int(name.split("/")[1]), rows) for name, rows in kept.pooled.items()]
    sums = {place: [text.float().sum(0) for text in texts.values()] for place, texts in kept.tokens.items()}
    found += [(layer, torch.stack(rows)) for (_, layer), rows in sums.items()]
    for layer, rows in sorted(found, key=lambda pair: pair[0]):
        share = 1 - torch.isfinite(rows).all(1).float().mean().item()
        if share:
            raise StudyError(
                f"activations at layer {layer} are NaN or infinite in {share:.1%} of the rows; leave this variant out", REFUSED
            )


# ---------------------------------------------------------------- kept by content
