"""A few facts about the real embedded model, which the tiny one cannot show."""

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.grams import collect_grams
from support.tiers import slow

from helpers.data import corpora, tasks
from helpers.models import generation, loading
from helpers.projection import subspaces
from helpers.updates import quantized_models, quantizers, safety_tuning

pytestmark = pytest.mark.real
WORD = re.compile(r"\w+")
PICTURE = re.compile(r"[A-Za-z0-9+/=]{200,}")  # no sentence: it has no space


@pytest.fixture(scope="module")
def base(embedded):
    return loading.load(embedded)


@pytest.fixture(scope="module")
def calibration(base):
    with pytest.MonkeyPatch.context() as patch:
        from conftest import use_real_cache

        use_real_cache(patch)
        texts = corpora.sample("c4/calibration", 4)
    return quantized_models.calibration_batches(base, texts)


@slow("the embedded model itself")
def test_the_base_barely_refuses(base):
    found = safety_tuning.check(base, safety_tuning.Target(prompts=12, tokens=8))
    assert found.non_refusal >= 0.5
    assert found.over_refusal <= 0.3


@slow("the embedded model itself")
def test_gptq_beats_rounding_on_its_calibration_inputs(base, calibration):
    """On at least 95 % of the modules GPTQ's output error is below RTN's at equal bits; the rest are named."""
    names = quantizers.linear_names(base.model)
    grams = collect_grams(base.model, calibration, names)
    worse = []
    for name in names:
        weight = base.model.get_submodule(name).weight
        plain, careful = (quantizers.QUANTIZERS[q](weight, grams[name]) for q in ("rtn-4", "gptq-4"))
        assert careful.stored_bytes == plain.stored_bytes
        if quantizers.output_error(weight, careful, grams[name]) >= quantizers.output_error(weight, plain, grams[name]):
            worse.append(name)
    assert len(worse) <= 0.05 * len(names), f"GPTQ is no better than RTN on {worse}"


@slow("the embedded model itself")
def test_more_bits_keep_more_of_a_real_weight(base):
    weight = base.model.get_submodule("model.layers.10.mlp.up_proj").weight
    errors = [quantizers.relative_error(weight, quantizers.QUANTIZERS[f"rtn-{bits}"](weight, None)) for bits in (8, 4, 3, 2)]
    assert errors == sorted(errors)


@slow("the embedded model itself")
def test_replies_are_the_same_twice_and_read_like_english(base):
    from helpers.models.behaviour import coherent, known_words

    prompts = [row.prompt for row in corpora.sample("instructions/test", 4)]
    first, second = (generation.replies(base, prompts, new_tokens=12) for _ in range(2))
    assert first == second
    assert sum(coherent(reply, known_words("embedded")) for reply in first) >= 3


@slow("the embedded model itself")
def test_a_planted_low_rank_change_of_the_real_weights_is_found(embedded, base, tmp_path):
    name = "model.layers.5.self_attn.o_proj"
    module = base.model.get_submodule(name)
    torch.manual_seed(0)
    change = (torch.randn(576, 3) @ torch.randn(3, 576)) * 0.05
    kept = module.weight.clone()
    with torch.no_grad():
        module.weight.add_(change.to(module.weight.dtype))
    changed = loading.save(base, tmp_path / "changed")
    with torch.no_grad():
        module.weight.copy_(kept)
    found = subspaces.spectra(embedded, changed, [name])[0]
    assert found.energy(3) > 0.99
    assert found.norm == pytest.approx(float(change.norm()), rel=0.02)


def test_no_harmful_text_stands_in_any_tracked_file():
    root = Path(__file__).parents[2]
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, check=False).stdout.split(b"\0")
    files = [root / name.decode() for name in listed if name]
    if not files:
        pytest.skip("not a git repository")
    prompts = {
        row.prompt
        for name in corpora.TEXTS
        if name.startswith(("advbench", "strongreject", "harmbench"))
        for row in corpora.texts(name)
    }
    for name in ("harmful-request", "refusal-compliance", "toxicity", "jailbreak"):  # privacy-pii is made up by Faker
        prompts |= {text for e in tasks.examples(name) for text in (e.prompt, e.reply) if len(text.split()) > 5}
    plain = [PICTURE.sub("", path.read_text(encoding="utf-8", errors="ignore")) for path in files if path.suffix != ".parquet"]
    tables = [pd.read_parquet(path).select_dtypes("str") for path in files if path.suffix == ".parquet"]
    everything = "\n".join({*plain, *(cell for table in tables for column in table for cell in table[column].unique())})
    known = set(WORD.findall(everything))
    # a text that stands there has all its words there but for the two at its ends, which may be parts of longer ones
    possible = [prompt for prompt in prompts if known.issuperset(WORD.findall(prompt)[1:-1])]
    assert len(prompts) > 2000
    assert not sum(prompt in everything for prompt in possible)
    control = "Name three colours of the rainbow."
    assert control in everything  # the control: the search finds what is there
    assert known.issuperset(WORD.findall(control)[1:-1])
