"""Compute: the number format in which a machine multiplies. Precision, the format that weights are stored in, is another thing.

With compute bf16 the products are made in bfloat16; with fp32 in float32, of weights whose values still lie on the grid of
their precision: the same model, finer arithmetic. A CPU without bf16 tiles (AMX) takes longer in bfloat16 than in float32, also
one with the dot products of AVX512-BF16 (`make bench` measures it); `auto` therefore means bf16 where a machine has fast units
for it, else fp32. The setting belongs to a process, like the number of threads: it is read from the environment, where the
runner puts it, so that kernels and their children agree.
"""

import os
import platform
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
EMULATED = 4  # at most so many times as long takes bf16 without fast units as float32 (AVX2: 3.7; AVX512-BF16: 1.4 to 1.7)


@dataclass(frozen=True)
class Compute:
    """A number format, `bf16` or `fp32`, and whether this machine has fast units for bf16."""

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
            return "computing in float32, although this machine has bf16 units: two to five times the time of bf16"
        return "this CPU has no fast bf16 units: computing in float32"

    def autocast(self, device: "torch.device") -> AbstractContextManager:
        """The context of a training step on float32 weights: products in bf16 where compute is bf16, else as they are."""
        import torch

        return torch.autocast(device.type, dtype=torch.bfloat16) if self.name == "bf16" else nullcontext()


@lru_cache
def native(device: str = "cpu") -> bool:
    """Whether a device is faster in bfloat16 than in float32: on an x86 CPU, where it has tiles for it that oneDNN may use."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # unlike what follows, this keeps to DNNL_MAX_CPU_ISA
        return False
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return True  # ARM: oneDNN says yes only where the instructions are there
    # With the dot products of AVX512-BF16 alone, a pass took 1.7, a LoRA step 1.4 times as long as in float32.
    return "AVX512" in torch.backends.cpu.get_cpu_capability() and torch.cpu._is_amx_tile_supported()


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
