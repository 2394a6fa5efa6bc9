"""Fused experts: one tensor that transformers makes, on loading, of the many that a mixture of experts is stored as."""

from collections.abc import Callable, Collection
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

# What a fused parameter is made of, in order, as checkpoints call it: most families; Mixtral
PARTS = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}
INSIDE = ("mlp", "block_sparse_moe", "feed_forward")  # what the layer of experts is called


def fused(name: str, stored: Collection[str], read: Callable[[str], Tensor]) -> Callable[[], Tensor] | None:
    """The way to make a fused parameter "experts d_out d_in" of what is stored, read by name; None where it is not stored so."""
    path, _, kind = name.rpartition(".")
    above = path.removesuffix(".experts").rpartition(".")[0]
    for inside in INSIDE if path.endswith(".experts") else ():
        for parts in PARTS.get(kind, ()):
            each = [f"{above}.{inside}.experts.{{}}.{part}.weight" for part in parts]
            count = next(i for i in range(len(stored) + 1) if each[0].format(i) not in stored)
            if count and all(one.format(i) in stored for one in each for i in range(count)):
                return partial(_stacked, each, count, read)
    return None


def _stacked(each: list[str], count: int, read: Callable[[str], Tensor]) -> Float[Tensor, "experts d_out d_in"]:
    return torch.stack([torch.cat([read(one.format(i)) for one in each]) for i in range(count)])
