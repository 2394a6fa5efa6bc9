"""What a hybrid layer costs, against the plain linear and against the same weight made dense at each call.

    python benchmarks/hybrid.py [--threads 1] [--repeats 30] [--model embedded]

The linears of the first MLP, 512 tokens at once and one token (as in generation), 1 % and 10 % of the neurons kept, NF4 with
weights dequantized once. A thin product costs what it computes: 10 % of the neurons are about 10 % more work, and one token
pays for a few small operations. Forming the sum at each call is little beside a long prompt, and about ten times the product
of one token. Ratios from one run, alternating repeats, medians. With `--model tiny` it runs offline in seconds: that shows
that the benchmark works, the ratios of so small a model mean nothing.
"""

import argparse

import torch
from bench import medians
from torch import Tensor
from torch.nn import functional as F

from helpers.models import loading
from helpers.neurons import hybrid_precision

TOKENS, SHARES = (512, 1), (0.01, 0.1)


def some(neurons: int, share: float) -> Tensor:
    """A mask of a share of the neurons, at least one, drawn from a fixed seed."""
    order = torch.randperm(neurons, generator=torch.Generator().manual_seed(0))
    return torch.zeros(neurons, dtype=torch.bool).index_fill(0, order[: max(1, round(share * neurons))], True)


def ratios(weight: Tensor, side: str, share: float, tokens: int, repeats: int) -> tuple[float, float]:
    """Time of the hybrid layer over that of the plain linear, and over that of the layer that is made dense at each call."""
    layer = hybrid_precision.hybrid(weight, "nf4", some(weight.shape[hybrid_precision.DIMS[side]], share), side)
    x = torch.randn(1, tokens, weight.shape[1], generator=torch.Generator().manual_seed(1)).to(weight.dtype)
    calls = range(max(1, 512 // tokens))  # so that one token is not lost in the clock's step
    with torch.no_grad():
        took = medians(
            {
                "ours": lambda: [layer(x) for _ in calls],
                "linear": lambda: [F.linear(x, weight) for _ in calls],
                "dense": lambda: [F.linear(x, layer.dense()) for _ in calls],
            },
            repeats,
        )
    return took["ours"] / took["linear"], took["ours"] / took["dense"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--model", choices=list(loading.MODELS), default="embedded")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    mlp = loading.load(loading.base_folder(options.model)).model.model.layers[0].mlp
    clock = "CPU" if options.threads == 1 else "wall-clock"
    print(f"{options.model}, {options.threads} thread(s), median of {options.repeats} alternating runs, ratios of {clock} time")
    print(f"\n{'':48} {'over linear':>11} {'over dense':>11}")
    for part in ("up_proj", "down_proj"):
        weight, side = getattr(mlp, part).weight, hybrid_precision.SIDES[part]
        for tokens in TOKENS:
            for share in SHARES:
                linear, dense = ratios(weight, side, share, tokens, options.repeats)
                name = f"{part} {tuple(weight.shape)}, {tokens} tokens, {share:.0%} {side}"
                print(f"{name:48} {linear:11.2f} {dense:11.2f}", flush=True)


if __name__ == "__main__":
    main()
