"""Seeding: seeds derived from names, and threads and seed set for a notebook."""

import hashlib


def named_seed(seed: int, name: str) -> int:
    """A seed of its own for everything that has a name, so that no two draws of a study are the same draw."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")


def derive_seed(seed: int, name: str) -> int:
    """A seed for one named purpose: two purposes never share random numbers, and the same name always gets the same."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:4], "big") >> 1


def set_up(threads: int, seed: int) -> None:
    """Sets the number of torch threads, and the seeds of everything that draws without being handed a generator."""
    import random

    import numpy as np
    import torch

    torch.set_num_threads(threads)
    random.seed(derive_seed(seed, "random"))
    np.random.seed(derive_seed(seed, "numpy"))
    torch.manual_seed(derive_seed(seed, "torch"))
