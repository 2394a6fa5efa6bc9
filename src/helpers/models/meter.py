"""The meter: how many tokens the models of a process have read and trained.

Seconds depend on the machine; tokens do not. A token counts 1 where it passes all blocks of its model, and that share of them
which it passes where a pass ends early; padding counts, since it is computed. Tokens of a pass that gradients are taken of
count as trained: forward, backward and step cost about three times as much. The counts live in a file that the environment
names, so that the runner sees them while a chapter runs, and also when it is killed.
"""

import os
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the runner reads the counts without waiting for torch
    from torch import nn

VARIABLE, FILE = "AFTER_UPDATE_TOKENS", "tokens"  # the environment variable that names the file, and its name
TRAINED = 3  # what a trained token costs, in tokens forward


@dataclass(frozen=True)
class Tokens:
    """Tokens read (`forward`) and trained."""

    forward: float = 0.0
    trained: float = 0.0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.forward + other.forward, self.trained + other.trained)

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.forward - other.forward, self.trained - other.trained)

    def __mul__(self, times: float) -> "Tokens":
        return Tokens(times * self.forward, times * self.trained)

    @property
    def cost(self) -> float:
        """Both in tokens forward."""
        return self.forward + TRAINED * self.trained

    @property
    def words(self) -> str:
        """Both, for a line on the screen."""
        return f"{_short(self.forward)} tokens forward, {_short(self.trained)} trained"


def _short(count: float) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.1f} k" if count >= 1e3 else f"{count:.0f}"


def read_counts(path: Path) -> Tokens:
    """The counts of a file; zero where there is none yet."""
    return Tokens(*map(float, np.fromfile(path))) if path.is_file() and path.stat().st_size == 16 else Tokens()


@cache
def _counts() -> np.ndarray:
    path = os.environ.get(VARIABLE)
    try:
        if path and not Path(path).is_file():
            np.zeros(2).tofile(path)
        # mapped: nothing has to be flushed before the process ends
        return np.memmap(path, np.float64, "r+", shape=(2,)) if path else np.zeros(2)
    except OSError:  # nobody reads the counts then, and a chapter does not fail for that
        return np.zeros(2)


def total() -> Tokens:
    """What this process has counted so far."""
    return Tokens(*map(float, _counts()))


def count(positions: float, trained: bool = False) -> None:
    """Adds tokens to the counts."""
    _counts()[int(trained)] += positions


def attach(model: "nn.Module", blocks: "list[nn.Module]") -> "nn.Module":
    """The same model, each of whose blocks from now on counts the share 1 / depth of every token that enters it."""
    for block in blocks:
        block.register_forward_pre_hook(partial(_entered, 1 / len(blocks)), with_kwargs=True)
    return model


def _entered(share: float, block: "nn.Module", args: tuple, kwargs: dict) -> None:
    import torch

    states = args[0] if args else kwargs["hidden_states"]
    graded = torch.is_grad_enabled() and (states.requires_grad or any(weight.requires_grad for weight in block.parameters()))
    count(share * states.shape[:2].numel(), graded)
