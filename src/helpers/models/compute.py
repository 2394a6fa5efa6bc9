"""Compute: the number format in which a machine multiplies. Precision, the format that weights are stored in, is another thing.

With compute bf16 the products are made in bfloat16; with fp32 in float32, of weights whose values still lie on the grid of
their precision: the same model, finer arithmetic. Which is faster cannot be told from a CPU's flags: with the same dot products
of AVX512-BF16 one machine took 1.7 times as long for a pass in bfloat16 as in float32, another a quarter (`make bench` measures
it). `auto` therefore times one product in both and means bf16 where that is clearly faster, else fp32. The setting belongs to a
process, like the number of threads: it is read from the environment, where the runner puts it, so that kernels and their
children agree.
"""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from helpers.errors import StudyError

if TYPE_CHECKING:  # the runner and the doctor name a compute without waiting for torch
    import torch

NAMES = ("auto", "bf16", "fp32")
VARIABLE = "AFTER_UPDATE_COMPUTE"
EMULATED = 4  # at most so many times as long takes bf16 without fast units as float32 (AVX2: 3.7; a slow AVX512-BF16: 1.4 to 1.7)
CLEARLY = 0.6  # of float32's time may a product in bfloat16 take; what lies around products gains less
PRODUCT = (256, 576, 1536)  # rows, inputs and outputs of the product that is timed: a module of the embedded model


@dataclass(frozen=True)
class Compute:
    """A number format, `bf16` or `fp32`, and whether this machine is faster in bf16."""

    name: str
    native: bool

    @property
    def dtype(self) -> "torch.dtype":
        """The format as torch knows it."""
        import torch

        return {"bf16": torch.bfloat16, "fp32": torch.float32}[self.name]

    @property
    def words(self) -> str:
        """What was chosen and what it costs, for a line on the screen."""
        if self.name == "bf16":
            return (
                "computing in bf16"
                if self.native
                else f"computing in bf16 without fast units, up to {EMULATED} times the time of fp32"
            )
        if self.native:
            return "computing in float32, although this machine is faster in bf16: two to five times its time"
        return "this CPU is not faster in bf16: computing in float32"

    def autocast(self, device: "torch.device") -> AbstractContextManager:
        """The context of a training step on float32 weights: products in bf16 where compute is bf16, else as they are."""
        import torch

        return torch.autocast(device.type, dtype=torch.bfloat16) if self.name == "bf16" else nullcontext()


@lru_cache
def native(device: str = "cpu") -> bool:
    """Whether a device is faster in bfloat16 than in float32; on a CPU whose instructions know bfloat16 a product is timed."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # what oneDNN may use: keeps to DNNL_MAX_CPU_ISA
        return False
    half, full = seconds(torch.bfloat16), seconds(torch.float32)
    return half <= CLEARLY * full


def seconds(dtype: "torch.dtype", repeats: int = 5) -> float:
    """The least of some times that a linear map of `PRODUCT` takes in a format on this CPU: other work only adds to a time."""
    import torch

    rows, inputs, outputs = PRODUCT
    x, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    took = []
    for _ in range(repeats + 1):  # the first makes the kernel
        began = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        took.append(time.perf_counter() - began)
    return min(took[1:])


def resolve(asked: str, device: str = "cpu") -> Compute:
    """The compute that a setting means on a device of this machine."""
    if asked not in NAMES:
        raise StudyError(f"unknown compute {asked!r}; choose one of {', '.join(NAMES)}")
    has = native(device)
    return Compute(("bf16" if has else "fp32") if asked == "auto" else asked, has)


def current(device: "str | torch.device" = "cpu") -> Compute:
    """The compute of this process on a device; emulated bf16, which must have been asked for, warns once."""
    found = resolve(os.environ.get(VARIABLE) or "auto", str(device))
    if found.name == "bf16" and not found.native:
        _warn(found.words)
    return found


@lru_cache
def _warn(words: str) -> None:
    warnings.warn(f"{words}; set compute=auto", stacklevel=3)


@contextmanager
def using(asked: str) -> Iterator[None]:
    """Runs the block with another setting, and restores the one before."""
    resolve(asked)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = asked
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def machine(device: "str | torch.device" = "cpu") -> dict[str, object]:
    """What of the machine decides the last digits of a measurement, for content keys: compute, device, threads, torch."""
    import torch

    found = {"compute": current(device).name, "device": str(device)}
    return {**found, "threads": torch.get_num_threads(), "torch": torch.__version__}
