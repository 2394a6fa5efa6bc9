"""What SafeLoRA's projection costs in thin products, against the plain dense formulation: ratios, errors and memory.

    python benchmarks/projections.py [--threads 1] [--repeats 3] [--model embedded]

C = V V^T / ||V||_F, s = cos(C B A, B A) and C B of LoRA modules of rank 8: of one module of 4096 x 4096 in bf16, of all modules
of the model (its aligned side is the base plus noise), and of a pair of checkpoints on disk with the shapes of Llama-2-7B, 64
of its modules in 16 shards (8 GB for some minutes in the temporary folder; left out, with a line, where there is less). Dense
is what the paper's released code does: C as a matrix, C B A and B A as matrices, their cosine. Memory is the peak of the resident
set above what it was before. With `--model tiny` it runs offline in seconds: that shows that the benchmark works, the ratios of
so small matrices mean nothing.
"""

import argparse
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from bench import medians
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from helpers.models import checkpoints, loading
from helpers.projection import alignment_matrix
from helpers.projection.alignment_matrix import Change, Pair
from helpers.updates import lora, quantizers
from helpers.updates.lora import LowRank

RANK, SPREAD, STEP = 8, 0.02, 1e-3  # of the update; size of the weights' entries, and of V's
MB, GB = 2**20, 2**30


@dataclass(frozen=True)
class Sizes:
    """Shapes of the planted parts: the one module, and the checkpoints on disk."""

    one: int
    d_model: int
    d_mlp: int
    layers: int


SIZES = {"embedded": Sizes(4096, 4096, 11008, 16), "tiny": Sizes(256, 128, 344, 2)}


def gaussian(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul_(size)


def planted(module: str, d_out: int, d_in: int) -> Change:
    """A random weight and the same with noise, in bf16."""
    weight = gaussian(d_out, d_in, seed=0, size=SPREAD)
    return Change(module, weight.bfloat16(), weight.add_(gaussian(d_out, d_in, seed=1, size=STEP)).bfloat16())


def update_of(d_out: int, d_in: int) -> LowRank:
    return LowRank(gaussian(d_out, RANK, seed=2, size=0.01), gaussian(RANK, d_in, seed=3, size=0.01))


# ---------------------------------------------------------------- the formulations


def ours(change: Change, update: LowRank) -> tuple[float, Tensor]:
    """s and C B as the study computes them."""
    moved = LowRank(alignment_matrix.projected(change, update.left), update.right)
    return lora.cosine(moved, update), moved.left


def dense(change: Change, update: LowRank, dtype: torch.dtype) -> tuple[float, Tensor]:
    """The steps of SafeLoRA's released code (Hsu et al. 2024), in one precision."""
    change_of, left, right = change.aligned.to(dtype) - change.base.to(dtype), update.left.to(dtype), update.right.to(dtype)
    c = torch.mm(change_of, change_of.T) / torch.norm(change_of)
    moved = torch.mm(c, left)
    s = F.cosine_similarity(torch.mm(moved, right).reshape(1, -1), torch.mm(left, right).reshape(1, -1))
    return float(s), moved


def exact(change: Change, update: LowRank) -> tuple[float, Tensor]:
    """The reference of the errors, in float64; only here C is applied as its two factors, which float64 does not notice."""
    v, left, right = change.aligned.double() - change.base.double(), update.left.double(), update.right.double()
    moved = v @ (v.T @ left) / v.norm()
    a, b = moved @ right, left @ right
    return float((a * b).sum() / (a.norm() * b.norm())), moved


def error(found: Tensor, reference: Tensor) -> float:
    return float((found.double() - reference).norm() / reference.norm())


# ---------------------------------------------------------------- memory and the table


def resident(field: str) -> int:
    """Bytes of the resident set now (VmRSS) or at its peak (VmHWM), mapped files included."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def extra(run: Callable[[], object]) -> float:
    """Bytes by which the resident set rose at its peak; NaN where the machine does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is counted anew from here
        before = resident("VmRSS")
        run()
        return resident("VmHWM") - before
    except OSError:
        return math.nan


def show(name: str, value: float, most: float | None = None, least: float | None = None) -> None:
    """One line of the table: a number, beside its goal where it has one."""
    verdict = ""
    if most is not None:
        verdict = f"<= {most:g} {'met' if value <= most else 'MISSED'}"
    if least is not None:
        verdict = f">= {least:g} {'met' if value >= least else 'MISSED'}"
    print(f"{name:66} {value:9.3g}  {verdict}".rstrip(), flush=True)


# ---------------------------------------------------------------- the three parts


def one_module(size: int, repeats: int) -> None:
    small = planted("warm", 64, 64)
    ours(small, update_of(64, 64))  # libraries take their own memory at the first call
    change, update = planted("one", size, size), update_of(size, size)
    print(f"one module, {size} x {size}, bf16, r {RANK}")
    show("  extra memory, MB", extra(lambda: ours(change, update)) / MB, 16)
    show("  the same of dense fp32, MB", extra(lambda: dense(change, update, torch.float32)) / MB)
    runs = {
        "ours": lambda: ours(change, update),
        "fp32": lambda: dense(change, update, torch.float32),
        "bf16": lambda: dense(change, update, torch.bfloat16),
    }
    took, (s, reference) = medians(runs, repeats), exact(change, update)
    show("  ours, milliseconds", 1000 * took["ours"])
    show("  dense fp32, over ours", took["fp32"] / took["ours"], least=45)
    show("  dense bf16, over ours", took["bf16"] / took["ours"], least=12)
    for name, run in runs.items():
        found = run()
        goal = 1e-5 if name == "ours" else None
        show(f"  error of C B, {name}", error(found[1], reference), goal)
        show(f"  error of s, {name}", abs(found[0] / s - 1), goal)


def whole_model(model: str, repeats: int) -> None:
    """All modules from memory, as reading them costs every formulation the same; what it costs stands beside."""
    folder = loading.base_folder(model)
    base, modules = checkpoints.checkpoint(folder), quantizers.linear_names(loading.load(folder).model)
    cases = []
    for seed, module in enumerate(modules):
        weight = base(module).clone()
        noisy = (weight.float() + gaussian(*weight.shape, seed=seed, size=STEP)).bfloat16()
        cases.append((Change(module, weight, noisy), update_of(*weight.shape)))
    took = medians(
        {
            "ours": lambda: [ours(change, update) for change, update in cases],
            "dense": lambda: [dense(change, update, torch.float32) for change, update in cases],
        },
        repeats,
    )
    took |= medians({"read": lambda: [base(module).sum() for module in modules]}, repeats)
    print(f"\nall {len(modules)} modules of the {model} model")
    show("  ours, seconds", took["ours"])
    show("  dense fp32, over ours", took["dense"] / took["ours"], least=15)
    show("  reading one checkpoint, over ours", took["read"] / took["ours"])


def write(folder: Path, sizes: Sizes, side: str) -> None:
    """One side of the pair on disk, a shard a layer; every layer holds the same random numbers, which are drawn once."""
    folder.mkdir()
    shapes = {"self_attn.q_proj": (sizes.d_model,) * 2, "self_attn.o_proj": (sizes.d_model,) * 2,
              "mlp.up_proj": (sizes.d_mlp, sizes.d_model), "mlp.down_proj": (sizes.d_model, sizes.d_mlp)}  # fmt: skip
    layer = {name: getattr(planted(name, *shape), side) for name, shape in shapes.items()}
    weight_map: dict[str, str] = {}
    for i in range(sizes.layers):
        tensors = {f"model.layers.{i}.{name}.weight": weight for name, weight in layer.items()}
        save_file(tensors, folder / f"model-{i:05}.safetensors")
        weight_map |= dict.fromkeys(tensors, f"model-{i:05}.safetensors")
    (folder / checkpoints.INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def on_disk(sizes: Sizes, repeats: int) -> None:
    needed = 2 * 2 * sizes.layers * 2 * (sizes.d_model**2 + sizes.d_model * sizes.d_mlp)
    free = shutil.disk_usage(tempfile.gettempdir()).free
    print(f"\na pair of checkpoints on disk, {needed / 2 / GB:.2f} GB each")
    if free < 1.1 * needed:
        print(
            f"  left out: {tempfile.gettempdir()} has {free / GB:.1f} GB free; set TMPDIR to a folder with {needed / GB:.1f} GB"
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        sides = [Path(folder) / side for side in ("base", "aligned")]
        for side in sides:
            write(side, sizes, side.name)
        os.sync()  # or writing goes on behind the measurement
        read_and_project(Pair(*map(checkpoints.checkpoint, sides), ()), sides[0], repeats)


def read_and_project(pair: Pair, folder: Path, repeats: int) -> None:
    modules = [name.removesuffix(".weight") for name in checkpoints.shards(folder)]
    updates = {shape: update_of(*shape) for shape in {pair.change(module).shape for module in modules}}

    def over(work: Callable[[Change], object]) -> Callable[[], None]:
        def run() -> None:
            for module in modules:
                work(pair.change(module))

        return run

    project = over(lambda change: ours(change, updates[change.shape]))
    show(f"  extra memory, {len(modules)} modules one by one, GB", extra(project) / GB, 1.5)
    took = medians(
        {
            "ours": project,
            "plain": over(lambda change: change.aligned.float() - change.base.float()),
            "blocks": over(lambda change: [None for _ in change.blocks()]),
        },
        repeats,
    )
    show("  ours, seconds", took["ours"])
    show("  ours, over reading both and subtracting in fp32", took["ours"] / took["plain"], 3)
    show("  ours, over one pass of the same blocks without any product", took["ours"] / took["blocks"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", choices=list(loading.MODELS), default="embedded")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    clock = "CPU" if options.threads == 1 else "wall-clock"
    print(f"{options.model}, {options.threads} thread(s), medians of {options.repeats} alternating runs, {clock} time\n")
    one_module(SIZES[options.model].one, options.repeats)
    whole_model(options.model, options.repeats)
    on_disk(SIZES[options.model], min(options.repeats, 2))


if __name__ == "__main__":
    main()
