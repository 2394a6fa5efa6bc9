"""What a user may give to `revalidate`, in bland words: text files, monitors, adapters, and panels of planted scores."""

import json

import numpy as np
import torch

from helpers.monitors import frozen, readouts
from helpers.monitors.probes import Readout
from helpers.revalidation.hypotheses import Panel
from helpers.updates import lora
from helpers.updates.lora import LowRank
from support.bland import things

MARKS = ("sunny breeze", "stormy thunder")
READS = "951389a53da7ebf6"


def text(seed, label=None, words=7):
    """Some things in a row, with a mark in the middle that tells the label."""
    found = things(seed, words).split()
    return " ".join(found if label is None else [*found[:3], MARKS[label], *found[3:]])


def labelled(n, seed="labels", words=7, **more):
    """Rows of both labels, in turn."""
    return [{"text": text(f"{seed} {i}", i % 2, words), "label": i % 2, **more} for i in range(n)]


def write(path, rows):
    """The rows as .jsonl, .csv or .txt, by the name; bytes and text as they are."""
    if isinstance(rows, bytes | str):
        path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    elif path.suffix == ".txt":
        path.write_text("\n".join(row["text"] for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def unlabelled(n, seed="texts", words=7):
    """Rows without labels, half of them with either mark."""
    return [{"text": text(f"{seed} {i}", i % 2, words)} for i in range(n)]


def monitor(name="lamps", kind="mean-difference", pooling="mean", layer=2, width=128, layers=4, reads=READS, seed=0, limit=64):
    """A frozen monitor with a random direction."""
    w = np.random.default_rng(seed).normal(size=width)
    readout = Readout(kind, readouts._linear(w, 0.0), 0.0)
    negatives = np.linspace(-1, 1, 40)
    return frozen.freeze(
        readout,
        negatives,
        task=name,
        pooling=pooling,
        layer=layer,
        layers=layers,
        seed=seed,
        reads=reads,
        limit=limit,
        model="tiny-1",
    )


def adapter(folder, size=0.05, seed=0, module="model.layers.0.mlp.down_proj", d_out=128, d_in=256):
    """A PEFT folder with one LoRA of rank 2."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(shape, generator=generator) for shape in ((d_out, 2), (2, d_in)))
    lora.save_adapter({module: LowRank(size * left, right)}, folder, {})
    return str(folder)


def panel(n=400, k=6, noise=0.01, seed=0, change=lambda scores, labels, rng: scores, strength=3.0):
    """Scores of k related monitors: `strength` sd between the classes, 5 % threshold, bf16-like noise, and what `change` does."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    before = strength * labels + 0.7 * rng.normal(size=n) + 0.7 * rng.normal(size=(k, n))
    after = change(before.copy(), labels, rng) + noise * rng.normal(size=(k, n))
    names = tuple(f"lamps/logistic-mean/{j}" for j in range(k))
    return Panel(names, labels, np.arange(n), before, after, np.full(k, 1.645), np.full(k, 0.05))
