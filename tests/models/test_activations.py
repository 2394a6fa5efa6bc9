"""Activations: what one pass reads equals the framework's own hidden states, whatever the batch, the prefix or the variant."""

import weakref
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.bland import ODD, SYSTEM, content, example
from support.tiers import slow
from torch import nn

from helpers.data import corpora
from helpers.data.splits import Example
from helpers.errors import REFUSED, USAGE, StudyError
from helpers.models import activations, built_in, encoding, loading
from helpers.models.activations import POOLINGS, Activations, layers, read
from helpers.models.encoding import Plan
from helpers.updates import lora, measurements, quantizers, training, variants
from helpers.updates.names import Variant
from helpers.updates.variants import Parts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

NOUNS = ("lamp", "river", "garden", "engine", "violin", "ladder", "window", "basket")
WINDOW = 16  # shorter than the prefix of `SYSTEM` and than most texts
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 384, "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
SLIDING = {"head_dim": 16, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
}
ALL = (0.25, 0.5, 0.75, 1.0)


def texts(n: int = 12) -> tuple[Example, ...]:
    """Texts of many lengths, every third with a reply."""
    nouns = [NOUNS[i % len(NOUNS)] for i in range(n)]
    return tuple(
        example(f"Polish the {noun}" + f" and number {i}" * (i % 4), f"The {noun} shines." if i % 3 == 2 else "", number=i)
        for i, noun in enumerate(nouns)
    )


def plan(examples=None, **changes) -> Plan:
    return Plan(**{"examples": examples or texts(), "depths": ALL, "limit": 64, **changes})


def random_model(family: str, seed: int = 0) -> loading.LanguageModel:
    """A random model of a family in float32; norms and biases are random too, so that none of them could be left out unseen."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **SIZES, **FAMILIES[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    tokenizer = built_in.tiny_tokenizer()
    tokenizer.chat_template = SYSTEM + built_in.TINY_TEMPLATE
    return loading.LanguageModel(model, tokenizer, None)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> loading.LanguageModel:
    return random_model(request.param)


@pytest.fixture(scope="module")
def llama() -> loading.LanguageModel:
    return random_model("llama")


@torch.no_grad()
def oracle(language: loading.LanguageModel, reading: Plan) -> dict[str, torch.Tensor]:
    """Both poolings of transformers' own hidden states, each text alone; at the last layer what enters the final norm."""
    causal, entering = loading.causal(language.model), []
    hook = causal.model.norm.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    found = encoding.encode(language.tokenizer, reading)
    pooled: dict[str, list] = {}
    for row, start, stop in zip(found.rows, found.starts, found.stops, strict=True):
        states = causal(input_ids=torch.tensor([row]), use_cache=False, output_hidden_states=True).hidden_states
        for layer, hidden in enumerate([*states[1:-1], entering[-1]], start=1):
            pooled.setdefault(f"last/{layer}", []).append(hidden[0, -1].float())
            pooled.setdefault(f"mean/{layer}", []).append(hidden[0, start:stop].float().mean(0))
    hook.remove()
    return {name: torch.stack(rows) for name, rows in pooled.items()}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a row in any pooling and layer."""
    assert one.keys() == other.keys()
    return max(float(((one[name] - other[name]).norm(dim=1) / other[name].norm(dim=1)).max()) for name in one)


def equal(one: Activations, other: Activations) -> bool:
    same = all(torch.equal(one.pooled[k], other.pooled[k]) for k in one.pooled | other.pooled)
    kept = all(torch.equal(one.tokens[k], other.tokens[k]) for k in one.tokens | other.tokens)
    places = all(np.array_equal(one.offsets[k], other.offsets[k]) for k in one.offsets | other.offsets)
    return same and kept and places and (one.layers, one.counts) == (other.layers, other.counts)


def refused(code: int, *words: str):
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(StudyError, match=f"^{pattern}[^\n]*$", check=lambda error: error.code == code)


# ---------------------------------------------------------------- the numbers


def test_every_layer_and_pooling_equals_the_hidden_states_of_the_framework(family):
    found = read(family, plan())
    assert found.layers == (1, 2, 3, 4)
    assert {values.dtype for values in found.pooled.values()} == {torch.float32}
    expected = oracle(family, plan())
    assert distance(found.pooled, expected) < 1e-5
    shifted = {f"{pooling}/{layer}": expected[f"{pooling}/{layer % 4 + 1}"] for pooling in POOLINGS for layer in found.layers}
    assert distance(found.pooled, shifted) > 0.1  # control: the neighbouring layer is something else


def test_the_last_layer_is_before_the_final_norm(family):
    found, norm = read(family, plan()), family.model.model.norm
    for text, row in enumerate(encoding.encode(family.tokenizer, plan()).rows):
        framework = family.model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, -1]
        assert torch.allclose(norm(found.pooled["last/4"][text]), framework, atol=1e-5)


def test_the_shared_prefix_changes_nothing(family):
    """Its tokens are longer than the window of the sliding layers, which therefore hold a part of it alone."""
    on, off = read(family, plan()), read(family, plan(), share=False)
    assert on.counts["prefix"] > 2 * WINDOW
    assert off.counts == {**on.counts, "prefix": 0}
    assert distance(on.pooled, off.pooled) < 1e-5


def test_the_prefix_is_computed_once(llama):
    seen = {}
    for prefix in (True, False):
        lengths = []
        hook = llama.model.model.embed_tokens.register_forward_hook(lambda _, ids, out, to=lengths: to.append(ids[0].numel()))
        shared = read(llama, plan(depths=(0.5,), budget=1), share=prefix).counts["prefix"]
        hook.remove()
        seen[prefix] = (lengths, shared)
    assert seen[True][0][0] == seen[True][1] > 0  # the first pass is the prefix, alone
    assert sum(seen[True][0]) == sum(seen[False][0]) - seen[True][1] * (len(texts()) - 1)


@pytest.mark.parametrize("prefix", [True, False])
def test_neither_batch_nor_padding_changes_a_text(llama, prefix):
    """One text a batch, some, and all 64 in one."""
    rows = plan(texts(64))
    one, some, whole = (read(llama, replace(rows, budget=budget), share=prefix) for budget in (1, 512, 10**6))
    assert distance(some.pooled, one.pooled) < 1e-5
    assert distance(whole.pooled, one.pooled) < 1e-5


def test_reading_twice_gives_the_same_bits(llama):
    both = [read(llama, plan(tokens=(("lamps", 0.5),))) for _ in range(2)]
    assert equal(*both)


def test_a_text_is_read_the_same_whatever_stands_beside_it(llama):
    alone = read(llama, plan(texts()[:1]))
    assert alone.counts["prefix"] > 0
    together = {name: rows[:1] for name, rows in read(llama, plan()).pooled.items()}
    assert distance(alone.pooled, together) < 1e-5


# ---------------------------------------------------------------- the kept tokens


def test_kept_tokens_are_the_states_of_the_content_in_the_order_of_the_plan(llama):
    rows = tuple(replace(e, task=("lamps", "rivers")[i % 2]) for i, e in enumerate(texts()))
    reading = plan(rows, depths=(1.0,), tokens=(("rivers", 0.5), ("lamps", 1.0)))
    found = read(llama, reading)
    assert set(found.tokens) == set(found.offsets) == {"rivers/2", "lamps/4"}
    assert set(found.pooled) == {"mean/4", "last/4"}  # depths of tokens need not be pooled
    assert {tokens.dtype for tokens in found.tokens.values()} == {llama.model.dtype}  # as they were computed
    expected = oracle(llama, reading)
    for name, task in (("rivers/2", 1), ("lamps/4", 0)):
        tokens, offsets = found.tokens[name], found.offsets[name]
        assert len(offsets) == len(rows) // 2 + 1
        assert offsets[-1] == len(tokens)
        means = torch.stack([tokens[a:b].float().mean(0) for a, b in pairwise(offsets)])
        wanted = expected[f"mean/{name[-1]}"][task::2]
        assert float(((means - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) < 2**-8  # half a unit of bf16's last place


def test_tokens_lose_nothing_where_the_model_computes_in_bf16(tiny):
    language = loading.load(tiny)
    seen = []
    hook = language.model.model.layers[1].register_forward_hook(lambda _, inputs, out: seen.append(out.clone()))
    found = read(language, plan(texts()[:1], depths=(0.5,), tokens=(("lamps", 0.5),)), share=False)
    hook.remove()
    encoded = encoding.encode(language.tokenizer, plan(texts()[:1]))
    assert torch.equal(found.tokens["lamps/2"], seen[0][0, encoded.starts[0] : encoded.stops[0]])


def test_tokens_of_an_absent_task_are_refused(llama):
    with refused(USAGE, "'rivers'", "no text of it"):
        read(llama, plan(tokens=(("rivers", 0.5),)))


# ---------------------------------------------------------------- memory


def size(found: Activations) -> int:
    """Bytes that stay alive with the activations: whole storages, so that a small view of a large tensor counts fully."""
    tensors = [*found.pooled.values(), *found.tokens.values()]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors) + sum(o.nbytes for o in found.offsets.values())


def test_what_is_kept_does_not_grow_with_the_texts(llama):
    short = tuple(example("Hi", number=i) for i in range(6))
    long = tuple(example("Polish the lamp. " * 20, number=i) for i in range(6))
    sizes = {name: size(read(llama, plan(rows, limit=512))) for name, rows in {"short": short, "long": long}.items()}
    assert sizes["short"] == sizes["long"] == 6 * llama.width * 4 * len(POOLINGS) * len(ALL)
    pairs = (("lamps", 0.5),)
    found = read(llama, plan(long, limit=512, tokens=pairs))
    tokens = len(found.tokens["lamps/2"])
    assert size(found) - sizes["long"] == tokens * llama.width * 4 + 7 * 8  # and with tokens by just their size
    assert tokens == 6 * len("Polish the lamp. " * 20)


def test_no_states_outlive_their_batch(llama):
    alive: list[weakref.ref] = []
    most = []

    def watch(module, inputs, output):
        alive.append(weakref.ref(output))
        most.append(sum(ref() is not None for ref in alive))

    hook = llama.model.model.layers[1].register_forward_hook(watch)
    read(llama, plan(depths=(0.5,), budget=64, tokens=(("lamps", 0.5),)))
    hook.remove()
    assert len(most) > 4
    assert max(most) == 1


def test_the_tokens_of_a_text_do_not_hold_the_states_of_its_batch(tiny, monkeypatch):
    """In bf16 nothing has to be converted, and a view would do: but it would keep every batch alive until the last one."""
    waiting, join = [], activations._joined

    def watched(found):
        waiting.extend(piece for texts in found.values() for piece in texts.values())
        return join(found)

    monkeypatch.setattr(activations, "_joined", watched)
    language = loading.load(tiny)
    tokens = read(language, plan(tokens=(("lamps", 0.5),))).tokens["lamps/2"]
    assert len(waiting) == len(texts())
    assert sum(piece.untyped_storage().nbytes() for piece in waiting) == tokens.numel() * 2


def test_there_is_no_graph_of_gradients():
    language = random_model("llama")
    language.model.requires_grad_(True)
    found = read(language, plan(tokens=(("lamps", 0.5),)))
    for values in (*found.pooled.values(), *found.tokens.values()):
        assert not values.requires_grad
        assert not values.is_inference()  # a probe can be trained on it
    assert loading.causal(language.model) is language.model


# ---------------------------------------------------------------- hooks


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_pass_ends_at_the_deepest_layer(llama):
    ran = []
    modules = {"block 3": llama.model.model.layers[2], "norm": llama.model.model.norm}
    watching = [module.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, module in modules.items()]
    read(llama, plan(depths=(0.25, 0.5)))
    assert ran == []
    read(llama, plan(depths=(0.75,)))
    assert set(ran) == {"block 3"}  # control: the watcher sees what does run
    for hook in watching:
        hook.remove()


def test_the_sink_gets_each_recorded_layer_once_and_in_order(llama):
    seen = []
    before = hooks(llama.model)
    with activations.reading(llama.model, (3, 1), lambda layer, hidden: seen.append((layer, tuple(hidden.shape)))):
        llama.model(input_ids=torch.arange(3, 10)[None], use_cache=False)
        pytest.fail("the pass went on behind the deepest layer")
    assert seen == [(1, (1, 7, 64)), (3, (1, 7, 64))]
    assert hooks(llama.model) == before


@pytest.mark.parametrize("where", ["sink", "model", "no such layer"])
def test_hooks_are_gone_after_an_error(llama, where):
    def sink(layer, hidden):
        assert hooks(llama.model) > before  # control: this is how hooks would be seen
        raise RuntimeError("planted")

    before, ids = hooks(llama.model), torch.tensor([[10**6 if where == "model" else 5]])
    recorded = (1, 9) if where == "no such layer" else (1, 2)
    with pytest.raises((RuntimeError, IndexError)), activations.reading(llama.model, recorded, sink):
        llama.model(input_ids=ids)
    assert hooks(llama.model) == before
    read(llama, plan())  # and the model still works


# ---------------------------------------------------------------- depths, and no prefix


def test_depths_become_layers():
    assert layers((0.25, 0.5, 1.0), 30) == (8, 15, 30)
    assert layers((1.0, 0.01), 30) == (1, 30)
    assert layers((0.2, 0.25, 0.3, 0.9), 4) == (1, 4)  # fewer layers than fractions: merged
    for wrong in (0.0, -0.5, 1.01, float("nan"), float("inf")):
        with refused(USAGE, "depths", "above 0, at most 1"):
            layers((0.5, wrong), 30)
    with refused(USAGE, "depths is empty"):
        layers((), 30)


def test_texts_that_share_nothing_are_read_without_a_prefix(llama):
    language = replace(llama, tokenizer=built_in.tiny_tokenizer())
    language.tokenizer.chat_template = "{{ messages[0]['content'] }}{{ '\\n' if add_generation_prompt }}"
    rows = plan((example("Polish"), example("lamp")))
    found = read(language, rows)
    assert found.counts["prefix"] == 0
    assert distance(found.pooled, oracle(language, rows)) < 1e-5


# ---------------------------------------------------------------- NaN and infinity


def test_nan_in_a_weight_is_refused_by_its_layer():
    language = random_model("llama")
    language.model.model.layers[2].mlp.down_proj.weight[5, 7] = float("nan")
    with refused(REFUSED, "layer 3", "100.0% of the rows"):
        read(language, plan())
    read(language, plan(depths=(0.5,)))  # control: the layers below it are sound
    with refused(REFUSED, "layer 3", "100.0% of the rows"):
        read(language, plan(depths=(0.5,), tokens=(("lamps", 0.75),)))  # a layer whose tokens alone are kept


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_share_of_bad_rows_is_said(bad):
    language = random_model("llama")
    language.model.model.embed_tokens.weight[language.tokenizer.convert_tokens_to_ids("z")] = bad
    rows = tuple(example(text) for text in ("lamp", "river", "zither", "garden"))
    with refused(REFUSED, "layer 1", "25.0% of the rows"):
        read(language, plan(rows))


# ---------------------------------------------------------------- variants


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory) -> Parts:
    """Two checkpoints, calibration texts and one planted adapter."""
    language, folder = loading.load(tiny), tmp_path_factory.mktemp("parts")
    with torch.no_grad():
        for p in language.model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).to(p.dtype))
    draw = torch.Generator().manual_seed(0)
    adapter = {}
    for name in quantizers.linear_names(language.model):
        d_out, d_in = language.model.get_submodule(name).weight.shape
        adapter[name] = lora.LowRank(*(0.1 * torch.randn(s, generator=draw) for s in ((d_out, 4), (4, d_in))))
    lora.save_adapter(adapter, folder / "update", {})
    (folder / "update" / "recipe.json").write_text(training.as_json({"losses": []}))
    calibration = tuple(f"The {noun} stands by the door and somebody will paint it. " * 4 for noun in NOUNS)
    made = Parts(tiny, loading.save(language, folder / "aligned"), calibration)
    return made.with_update("shine", "bf16", folder / "update")


SHINE = {"adapter": "shine", "trained_on": "bf16"}
VARIANTS = {
    "bf16": {}, "fp32": {"precision": "fp32"}, "int8": {"precision": "int8"}, "nf4": {"precision": "nf4"},
    "gptq-4": {"precision": "gptq-4"}, "merged": {**SHINE, "serving": "merged"}, "attached": {**SHINE, "serving": "attached"},
    "attached to nf4": {**SHINE, "precision": "nf4", "serving": "attached"},
    "attached to int8": {**SHINE, "precision": "int8", "serving": "attached"},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_variant_is_read(parts, name):
    """Tolerance: bf16 results move with the batch by some units of its last place, int8 by its outliers as well."""
    language = variants.build_variant(parts, Variant("tiny", **VARIANTS[name]))
    found = read(language, plan(tokens=(("lamps", 0.5),)))
    assert distance(found.pooled, oracle(language, plan())) < (1e-5 if name == "fp32" else 0.05)
    assert equal(found, read(language, plan(tokens=(("lamps", 0.5),))))
    if name not in {"bf16", "fp32"}:
        aligned = read(variants.build_variant(parts, Variant("tiny")), plan())
        assert distance(found.pooled, aligned.pooled) > 1e-3


def test_4_bit_modules_are_read_like_the_weights_dequantized_once(parts):
    modules, plain = loading.load(parts.aligned), variants.build_variant(parts, Variant("tiny", precision="nf4"))
    quantizers.to_bitsandbytes_(modules.model, "nf4")
    assert type(modules.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    first, again = read(modules, plan()), read(modules, plan())
    assert distance(first.pooled, read(plain, plan()).pooled) < 0.02
    assert equal(first, again)  # evaluating does not repack the codes


@pytest.mark.gpu
def test_a_gpu_reads_what_a_cpu_reads():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    language = random_model("qwen3")
    on_cpu = read(language, plan(tokens=(("lamps", 0.5),)))
    on_gpu = read(replace(language, model=language.model.to("cuda")), plan(tokens=(("lamps", 0.5),)))
    assert {values.device.type for values in (*on_gpu.pooled.values(), *on_gpu.tokens.values())} == {"cpu"}
    assert distance(on_gpu.pooled, on_cpu.pooled) < 1e-4
    assert on_gpu.counts == on_cpu.counts


# ---------------------------------------------------------------- the cache


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("AFTER_UPDATE_CACHE", str(tmp_path))
    return tmp_path / "activations"


KEPT = {"depths": (0.5, 1.0), "tokens": (("lamps", 0.5),)}


def forbidden():
    raise AssertionError("a model was built although the activations are there")


def test_a_hit_builds_no_model_and_gives_the_same_bits(parts, cache):
    reading, variant = plan(**KEPT), Variant("tiny", precision="nf4")
    first = measurements.stored(parts, variant, reading)
    again = measurements.stored(parts, variant, reading, build=forbidden)
    assert equal(first, again)
    assert equal(first, read(variants.build_variant(parts, variant), reading))
    assert again.tokens["lamps/2"].dtype == torch.bfloat16
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


def test_the_builder_that_is_given_is_used(parts, cache):
    calls = []

    def build():
        calls.append(1)
        return variants.build_variant(parts, Variant("tiny"))

    measurements.stored(parts, Variant("tiny"), plan(), build=build)
    measurements.stored(parts, Variant("tiny"), plan(), build=build)
    assert calls == [1]


def test_another_plan_or_variant_has_another_address(parts, cache):
    reading = plan(**KEPT)
    others = [
        replace(reading, examples=texts(11)), replace(reading, examples=texts()[::-1]), replace(reading, depths=(0.5,)),
        replace(reading, limit=63), replace(reading, tokens=()), replace(reading, budget=100),
        replace(reading, examples=(replace(texts()[0], task="rivers"), *texts()[1:])),
        replace(reading, examples=(replace(texts()[0], reply="Yes."), *texts()[1:])),
    ]  # fmt: skip
    assert len({reading.key(), *(other.key() for other in others)}) == len(others) + 1
    relabelled = tuple(replace(e, label=1 - e.label, split="test", group="x") for e in texts())
    assert replace(reading, examples=relabelled).key() == reading.key()  # what is no part of the activations
    built = []
    for variant in (Variant("tiny"), Variant("tiny", adapter="base"), Variant("tiny", seed=1)):
        language = variants.build_variant(parts, variant)
        measurements.stored(parts, variant, reading, build=lambda language=language: built.append(1) or language)
    assert len(built) == 2  # seed 1 of a variant without update is the same model


DAMAGE = {
    "torn": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "no safetensors": lambda data: b"\x80\x04pickle",
    **{f"flipped at {share:.0%}": lambda data, share=share: flipped(data, share) for share in (0.0, 0.005, 0.1, 0.5, 0.9, 1.0)},
}


def flipped(data: bytes, share: float) -> bytes:
    place = round(share * (len(data) - 1))
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again(parts, cache, damage):
    reading, variant = plan(**KEPT), Variant("tiny")
    whole = read(variants.build_variant(parts, variant), reading)
    measurements.stored(parts, variant, reading)
    (path,) = cache.iterdir()
    good = path.read_bytes()
    path.write_bytes(DAMAGE[damage](good))
    assert equal(measurements.stored(parts, variant, reading), whole)
    assert path.read_bytes() == good


def test_activations_of_something_else_are_not_taken(parts, cache):
    measurements.stored(parts, Variant("tiny"), plan(**KEPT))
    (path,) = cache.iterdir()
    other = plan(texts(11), **KEPT)
    measurements.stored(parts, Variant("tiny"), other)
    (second,) = set(cache.iterdir()) - {path}
    path.replace(second)  # a whole file under a wrong name
    assert measurements.stored(parts, Variant("tiny"), other).counts["texts"] == 11


def test_a_broken_variant_is_named_and_leaves_no_file(parts, cache):
    language = variants.build_variant(parts, Variant("tiny", precision="nf4"))
    with torch.no_grad():
        language.model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with refused(REFUSED, "variant nf4: activations at layer 1", "100.0%"):
        measurements.stored(parts, Variant("tiny", precision="nf4"), plan(), build=lambda: language)
    assert list(cache.iterdir()) == []


# ---------------------------------------------------------------- the real model


@slow("the embedded model; the tiny models of every family stay")
@pytest.mark.real
def test_the_embedded_model_is_read_like_the_framework_does(embedded):
    """bf16 on the same batches without prefix: the same kernels, so only the order of the mean's float32 sum may differ."""
    language = loading.load(embedded)
    prompts = [row.prompt for row in corpora.sample("instructions/test", 12)]
    rows = plan(tuple(example(prompt) for prompt in [*prompts, *ODD.values()]), depths=(0.2, 0.5, 0.9), limit=96)
    found = read(language, rows, share=False)
    assert found.layers == (6, 15, 27)
    encoded = encoding.encode(language.tokenizer, rows)
    expected = {name: torch.empty_like(values) for name, values in found.pooled.items()}
    for batch in encoding.token_batches([len(row) for row in encoded.rows], rows.budget):
        ids = loading.pad([encoded.rows[i] for i in batch], language.tokenizer.pad_token_id)
        with torch.no_grad():
            states = language.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        for layer in found.layers:
            for place, i in enumerate(batch):
                hidden = states[layer][place].float()
                expected[f"last/{layer}"][i] = hidden[len(encoded.rows[i]) - 1]
                expected[f"mean/{layer}"][i] = hidden[encoded.starts[i] : encoded.stops[i]].mean(0)
    assert all(torch.equal(found.pooled[f"last/{layer}"], expected[f"last/{layer}"]) for layer in found.layers)
    assert distance(found.pooled, expected) < 1e-5
    assert distance(read(language, rows).pooled, expected) < 0.05  # with the prefix bf16 rounds in another order
    found = content(language.tokenizer, [example(text) for text in ODD.values()])
    assert [text.strip("\n") for text in found] == [text.strip("\n") for text in ODD.values()]  # line breaks join the template's
