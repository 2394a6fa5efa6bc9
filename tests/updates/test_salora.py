"""SaLoRA: it starts as the model it is given, stays off the safety directions, and leaves one plain LoRA behind."""

from dataclasses import replace

import pytest
import torch
from support.tiers import slow
from torch import nn

from helpers.data.text_rows import Row
from helpers.errors import StudyError
from helpers.models import built_in, loading
from helpers.updates import lora, quantizers, salora, training
from helpers.updates.lora import LowRank
from helpers.updates.training import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

NOUNS = ("lamp", "river", "garden", "engine", "violin", "ladder", "window", "basket")
ROWS = [Row(f"Polish the {noun}" + " and wait" * (i % 3), f"The {noun} shines.") for i, noun in enumerate(NOUNS)]
SAFETY = [Row(f"Never: bury the {noun}" + " at noon" * (i % 2), f"No, the {noun} stays up.") for i, noun in enumerate(NOUNS)]
RECIPE = Recipe(kind="salora", epochs=2, batch=4, rank=4, lr=1e-3, seed=3)
IDS = torch.arange(3, 60)[None]


def opened(tiny, precision: str = "none", dtype: str = "fp32") -> loading.LanguageModel:
    """The tiny model, its weights dequantized once from a precision, with the attention that training on a CPU uses."""
    language = loading.load(tiny, dtype)
    quantizers.apply_dequantized(language.model, quantizers.quantize_model(language.model, precision))
    language.model.set_attn_implementation("eager")
    return language


def rows_of(language: loading.LanguageModel) -> list[training.TokenizedRow]:
    return training.examples(language.tokenizer, ROWS, RECIPE.limit)


def started(language: loading.LanguageModel, rank: int = RECIPE.rank) -> dict[str, salora.Start]:
    return salora.starts(language, rank, rows_of(language), SAFETY)


@pytest.fixture
def train(tiny):
    def run(recipe: Recipe = RECIPE, safety=SAFETY, **options) -> training.Tuned:
        return salora.tune_salora(opened(tiny), ROWS, recipe, safety, **options)

    return run


@pytest.fixture(scope="module")
def usual(tiny) -> tuple[nn.Module, training.Tuned]:
    """A model that was trained by SaLoRA, still wrapped, and what came out: one run for all that compare with it."""
    language = opened(tiny)
    return language.model, salora.tune_salora(language, ROWS, RECIPE, SAFETY)


@pytest.fixture(scope="module")
def trained(usual) -> tuple[nn.Module, lora.Adapter]:
    """The model, still wrapped, and the adapter that came out."""
    return usual[0], lora.from_peft(usual[1].tensors, 1.0)


@pytest.fixture(scope="module")
def plain(tiny) -> lora.Adapter:
    """The control: plain LoRA of the same rows, rank and steps."""
    tuned = training.tune(opened(tiny), ROWS, replace(RECIPE, kind="lora", alpha=RECIPE.rank))
    return lora.from_peft(tuned.tensors, 1.0)


@torch.no_grad()
def logits(model, dtype: str = "fp32") -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        return model(input_ids=IDS).logits


def share(directions: torch.Tensor, matrix: torch.Tensor) -> float:
    """How much of a matrix's norm lies in the span of orthonormal directions."""
    return float((directions.T @ matrix).norm() / matrix.norm())


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refused(*words):
    return pytest.raises(StudyError, match="^" + "".join(f"(?=.*{word})" for word in words) + r"[^\n]*$")


# ---------------------------------------------------------------- where it starts


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("precision", ["none", "nf4"])
def test_the_first_step_sees_the_model_as_it_was_bit_for_bit(tiny, precision, dtype):
    language = opened(tiny, precision, dtype)
    before = logits(language.model, dtype)
    model = salora.prepare(language, RECIPE, rows_of(language), SAFETY)
    assert torch.equal(logits(model, dtype), before)
    for name, module in model.named_modules():  # control: nothing of it is zero, so this is not plain LoRA's start
        if isinstance(module, salora.Left):
            assert module.start.norm() > module.kept.norm() > 0, name
    next(p for name, p in model.named_parameters() if p.requires_grad and "lora_B" in name).data.add_(0.1)
    assert not torch.equal(logits(model, dtype), before)


def test_the_factors_start_at_the_leading_triplets_of_the_weights(tiny):
    """Planted: weights whose singular values fall by half, so that the leading four are beyond doubt."""
    language = opened(tiny)
    for name in quantizers.linear_names(language.model):
        weight = language.model.get_submodule(name).weight
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        weight.copy_((u * 2.0 ** -torch.arange(len(s))) @ v)
    examples = rows_of(language)
    names = quantizers.linear_names(language.model)
    task = salora.output_directions(language, names, examples)
    for name, start in started(language).items():
        u, s, v = (t[..., :4] for t in torch.svd(language.model.get_submodule(name).weight))
        top = (u * s) @ v.T
        torch.testing.assert_close(start.left @ start.right, task[name] @ task[name].T @ top, rtol=0, atol=1e-5)
        torch.testing.assert_close(start.right.norm(dim=1), s.sqrt(), rtol=1e-5, atol=0)
        assert share(task[name], start.left) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_the_directions_are_the_leading_right_singular_vectors_of_x_wt(tiny_model, bias):
    """Oracle: each text alone, without padding, X read before the module, Y = X W^T formed here, all its vectors exact."""
    torch.manual_seed(0)
    config = built_in.tiny_config(attention_bias=bias, mlp_bias=bias, num_hidden_layers=2)
    model = type(tiny_model.model)(config).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=3)
    language = replace(tiny_model, model=model)
    texts = [training.TokenizedRow(tuple(range(5, 5 + 9 * n)), 4) for n in (9, 2, 4)]
    names = quantizers.linear_names(model)
    seen = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0][0]))
    for text in texts:
        model(input_ids=torch.tensor([text.ids]))
    inputs = {name: torch.cat([states[4:] for states in found]) for name, found in seen.items()}
    for name, found in salora.output_directions(language, names, texts).items():
        y = inputs[name] @ model.get_submodule(name).weight.T
        exact = torch.linalg.svd(y, full_matrices=False).Vh[: found.shape[1]].T
        torch.testing.assert_close(found.T @ found, torch.eye(found.shape[1]), rtol=0, atol=1e-5)
        assert found.shape == (y.shape[1], min(salora.DIRECTIONS, y.shape[1] // 2))
        assert (y @ found).norm() > 0.999 * (y @ exact).norm()
        assert (y @ found).norm() > 1.2 * (y @ torch.linalg.qr(torch.randn(found.shape)).Q).norm()  # control


def test_what_the_texts_cannot_tell_is_left_out(tiny_model):
    names = quantizers.linear_names(tiny_model.model)
    rows = [training.TokenizedRow(ids, 0) for ids in ((5, 6, 7), (5, 6, 7), (5, 6))]
    few = salora.output_directions(tiny_model, names, rows)
    assert all(found.shape[1] <= 3 for found in few.values())  # the rows begin alike: three outputs in all
    assert not any(tiny_model.model.get_submodule(name)._forward_hooks for name in names)


def test_a_batch_is_bounded_and_reaches_the_end_of_the_rows(monkeypatch):
    rows = [training.TokenizedRow((i,) * (10 + i % 5), 3) for i in range(200)]
    assert len(salora.one_batch(rows)) == salora.ROWS
    assert salora.one_batch(rows)[-1].ids[0] >= 190
    monkeypatch.setattr(salora, "BATCH_TOKENS", 100)
    assert [row.ids[0] for row in salora.one_batch(rows)] == [0, 28, 57, 85, 114, 142, 171]
    long = [training.TokenizedRow((1,) * 500, 3)]
    assert salora.one_batch(long) == long
    places = salora.drawn_places([(1, 3), (0, 1), (2, 6)], 6, 5).tolist()
    assert len(set(places)) == 5
    assert set(places) <= {1, 2, 6, 14, 15, 16, 17}  # neither what lies before a span nor the padding behind it


def test_directions_are_read_from_replies_and_not_from_prompts(tiny):
    """Planted: embeddings in which the tokens of prompts and those of replies span two orthogonal planes of two axes each."""
    language = opened(tiny)
    rows = [training.TokenizedRow((10, 11, 10, 20 + i % 2, 21 - i % 2), 3) for i in range(8)]
    with torch.no_grad():
        embedded = language.model.get_input_embeddings().weight
        for axis, token in enumerate((10, 11, 20, 21)):
            embedded[token] = 0
            embedded[token, axis] = 1
        first = language.model.model.layers[0]
        first.input_layernorm.weight.fill_(1)
        first.self_attn.q_proj.weight.copy_(torch.eye(*first.self_attn.q_proj.weight.shape))
    name = "model.layers.0.self_attn.q_proj"
    found = salora.output_directions(language, [name], rows)[name]
    assert found.shape[1] == 2
    assert found[2:4].norm() == pytest.approx(2**0.5, abs=1e-4)  # the plane of the replies
    assert found[:2].norm() < 1e-4  # and nothing of the prompts'
    whole = salora.output_directions(language, [name], [replace(row, start=0) for row in rows])[name]
    assert whole[:2].norm() == pytest.approx(2**0.5, abs=1e-4)  # control: they are there to be read


# ---------------------------------------------------------------- the fixed module


def test_c_is_a_projector_of_the_rank_that_is_left(tiny):
    for name, start in started(opened(tiny)).items():
        size, gone = start.safety.shape
        c = salora.outside(torch.eye(size), start.safety)
        torch.testing.assert_close(c, c.T, rtol=0, atol=1e-6, msg=name)
        torch.testing.assert_close(c @ c, c, rtol=0, atol=1e-5, msg=name)
        assert float(c.trace()) == pytest.approx(size - gone, abs=1e-3)


def test_it_is_the_forward_pass_of_the_paper(tiny):
    """Oracle: W x - C B0 A0 x + C B A x with every matrix dense and in float64, at B and A away from their start."""
    language = opened(tiny)
    starts = started(language)
    weights = {name: language.model.get_submodule(name).weight.double() for name in starts}
    salora.prepare(language, RECIPE, rows_of(language), SAFETY)
    torch.manual_seed(5)
    for name, start in starts.items():
        layer = language.model.get_submodule(name)
        b, a = (layer.get_submodule(f"lora_{side}.default.parametrizations.weight").original for side in "BA")
        torch.testing.assert_close(b.detach(), start.left, rtol=0, atol=0)
        torch.testing.assert_close(a.detach(), start.right, rtol=0, atol=0)
        b.data += 0.1 * torch.randn_like(b)
        a.data += 0.1 * torch.randn_like(a)
        c = torch.eye(len(b)).double() - start.safety.double() @ start.safety.double().T
        x = torch.randn(7, a.shape[1])
        dense = weights[name] - c @ start.left.double() @ start.right.double() + c @ b.double() @ a.double()
        torch.testing.assert_close(layer(x).double(), x.double() @ dense.T, rtol=0, atol=1e-5)


def test_what_is_trained_is_b_and_a_alone(tiny):
    language = opened(tiny)
    base = {name: t.clone() for name, t in language.model.state_dict().items()}
    model = salora.prepare(language, RECIPE, rows_of(language), SAFETY)
    buffers = {name: t.clone() for name, t in model.named_buffers()}
    loop = training.Loop(model, RECIPE, 2, None, 60.0)
    begun = {name: p.detach().clone() for name, p in loop.named.items()}
    assert len(begun) == 2 * len(quantizers.linear_names(loading.load(tiny).model))
    assert {min(p.shape) for p in begun.values()} == {RECIPE.rank}  # not 2r: the other half is fixed
    loop.advance(training.reply_loss, rows_of(language)[:4], 2, language.device)
    assert not any(torch.equal(p, begun[name]) for name, p in loop.named.items())
    after = dict(model.named_buffers())
    assert all(torch.equal(t, after[name]) and not after[name].requires_grad for name, t in buffers.items())
    weights = {training.clean_name(name).replace(".base_layer", ""): t for name, t in model.state_dict().items()}
    assert all(torch.equal(base[name], weights[name]) for name in base)


def test_under_autocast_the_projection_stays_float32(tiny):
    start = next(iter(started(opened(tiny)).values()))
    left = salora.Left(start)
    with torch.autocast("cpu", torch.bfloat16):
        made = left(start.left + 0.1)
    assert made.dtype == torch.float32
    assert share(start.safety, made) < 1e-5
    rough = start.left + 0.1 - (start.safety.bfloat16() @ (start.safety.bfloat16().T @ (start.left + 0.1).bfloat16())).float()
    assert share(start.safety, rough) > 1e-3  # control: what bf16 would leave


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("precision", ["none", "nf4"])
def test_the_update_is_one_plain_lora_of_twice_the_rank(tiny, precision):
    language = opened(tiny, precision)
    tuned = salora.tune_salora(language, ROWS, RECIPE, SAFETY)
    adapter = lora.from_peft(tuned.tensors, 1.0)
    fresh = opened(tiny, precision)
    before = logits(fresh.model)
    assert list(adapter) == sorted(quantizers.linear_names(fresh.model))
    assert {pair.right.shape[0] for pair in adapter.values()} == {2 * RECIPE.rank}
    assert adapter["model.layers.0.self_attn.k_proj"].left.shape == (64, 8)  # grouped queries: fewer keys
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in tuned.tensors.values())
    lora.attach(fresh.model, adapter)
    torch.testing.assert_close(logits(fresh.model), logits(language.model), rtol=0, atol=1e-5)
    assert (logits(fresh.model) - before).abs().max() > 1e-2  # control: it is no empty update


def test_no_update_reaches_a_safety_direction(tiny, trained, plain):
    for name, start in started(opened(tiny)).items():
        assert share(start.safety, trained[1][name].left) < 1e-5, name
        assert share(start.safety, trained[1][name].dense()) < 1e-5, name
        assert share(start.safety, plain[name].left) > 0.1, name  # control


def test_bf16_keeps_these_factors_and_would_lose_the_paper_s_own(tiny, trained):
    """Both are the same update; what is served is rounded to bf16, and a difference of two large products does not survive it."""

    def error(pair: LowRank, dense: torch.Tensor) -> float:
        rounded = LowRank(pair.left.bfloat16(), pair.right.bfloat16()).dense()
        return float((rounded - dense).norm() / dense.norm())

    rank = RECIPE.rank
    for name, start in started(opened(tiny)).items():
        pair = trained[1][name]
        kept, a = pair.left[:, rank:], pair.right[:rank]  # C B0 and A
        theirs = LowRank(torch.cat([pair.left[:, :rank] + kept, -kept], 1), torch.cat([a, start.right]))
        torch.testing.assert_close(theirs.dense(), pair.dense(), rtol=0, atol=1e-6)
        assert error(pair, pair.dense()) < 0.01
        assert error(theirs, pair.dense()) > 2 * error(pair, pair.dense())


@torch.no_grad()
def outputs(language: loading.LanguageModel, adapter: lora.Adapter, names: list[str]) -> dict[str, torch.Tensor]:
    """What modules put out at the tokens of the refusals, with an adapter attached."""
    found = {name: [] for name in names}
    model = lora.attach(language.model, adapter) if adapter else language.model
    for name in names:
        module = language.model.get_submodule(name)
        module.register_forward_hook(lambda module, inputs, output, name=name: found[name].append(output[0]))
    for example in training.examples(language.tokenizer, SAFETY, RECIPE.limit):
        model(input_ids=torch.tensor([example.ids]))
        for kept in found.values():
            kept[-1] = kept[-1][example.start :]
    return {name: torch.cat(kept) for name, kept in found.items()}


def test_what_is_read_of_refusals_stays_where_a_lora_of_equal_norm_moves_it(tiny, trained, plain):
    """A module's outputs keep their place along V_s while its inputs are as they were, and move elsewhere like LoRA's."""
    names = [f"model.layers.0.self_attn.{side}_proj" for side in "qkv"]
    scale = {name: pair.norm() / plain[name].norm() for name, pair in trained[1].items()}
    same = {name: LowRank(pair.left * scale[name], pair.right) for name, pair in plain.items()}
    starts, before = started(opened(tiny)), outputs(opened(tiny), {}, names)
    ours, theirs = outputs(opened(tiny), trained[1], names), outputs(opened(tiny), same, names)
    for name in names:
        assert same[name].norm() == pytest.approx(trained[1][name].norm())
        safety, y = starts[name].safety, before[name]
        assert share(safety, y.T) > 0.8  # most of what there is to read lies along V_s
        assert share(safety, (ours[name] - y).T) < 1e-4
        assert share(safety, (theirs[name] - y).T) > 0.3
        assert (ours[name] - y).norm() > 0.5 * (theirs[name] - y).norm()  # the promise holds along V_s alone


def test_it_learns(train, usual):
    losses = train(replace(RECIPE, epochs=10, lr=1e-2)).losses
    assert losses[-1] < losses[0] - 1
    assert losses[0] == usual[1].losses[0]  # both see the aligned model first


# ---------------------------------------------------------------- again, killed, and refused


def test_a_seed_repeats_bit_for_bit_and_another_does_not(train, usual):
    one, again = usual[1], train()
    assert equal(one.tensors, again.tensors)
    assert one.losses == again.losses
    assert not equal(one.tensors, train(replace(RECIPE, seed=4)).tensors)


def test_neither_alpha_nor_the_global_seed_matters_and_the_safety_rows_do(train, usual):
    one = usual[1]
    torch.manual_seed(77)
    assert equal(one.tensors, train(replace(RECIPE, alpha=99)).tensors)
    assert not equal(one.tensors, train(safety=SAFETY[:3]).tensors)
    assert not equal(one.tensors, train(safety=[replace(row, reply="No.") for row in SAFETY]).tensors)


class Killed(Exception):
    pass


@slow("the loop of test_training, killed and resumed there")
def test_a_killed_run_goes_on_and_ends_with_the_same_tensors(train, usual, tmp_path):
    checkpoint, steps = tmp_path / "run.checkpoint.safetensors", []

    def dies(done: int, total: int, loss: float) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        train(checkpoint=checkpoint, save_every=0.0, progress=dies)
    assert checkpoint.is_file()
    resumed = train(checkpoint=checkpoint, save_every=0.0, progress=lambda done, total, loss: steps.append(done))
    whole = usual[1]
    assert steps == [4]
    assert equal(resumed.tensors, whole.tensors)
    assert resumed.losses == whole.losses
    assert not checkpoint.exists()


def test_what_cannot_be_is_refused_before_the_model_is_touched(tiny):
    language = opened(tiny)
    with refused("rank 65", r"model\.layers\.0\.self_attn\.k_proj", r"\(64, 128\)", "use 1 to 64"):
        salora.tune_salora(language, ROWS, replace(RECIPE, rank=65), SAFETY)
    with refused("rank 0", "use 1 to"):
        salora.tune_salora(language, ROWS, replace(RECIPE, rank=0), SAFETY)
    with refused("no safety rows", "give at least one row"):
        salora.tune_salora(language, ROWS, RECIPE, [])
    with refused("no reply", "give each prompt its refusal"):
        salora.tune_salora(language, ROWS, RECIPE, [*SAFETY, Row("Bury it")])
    with refused("no rows to train on"):
        salora.tune_salora(language, [], RECIPE, SAFETY)
    with refused("'lora'", "use kind=salora"):
        salora.tune_salora(language, ROWS, replace(RECIPE, kind="lora"), SAFETY)
    assert not any("lora" in name for name, _ in language.model.named_modules())


def test_a_model_without_numbers_to_start_from_is_refused(tiny):
    headless = replace(opened(tiny), model=nn.Sequential(nn.Embedding(8, 8)))
    with refused("Sequential", "no linear module"):
        salora.tune_salora(headless, ROWS, RECIPE, SAFETY)
    packed = loading.load(tiny)
    quantizers.to_bitsandbytes_(packed.model, "nf4")
    with refused(r"model\.layers\.0\.self_attn\.q_proj", "uint8", "dequantized once"):
        salora.tune_salora(packed, ROWS, RECIPE, SAFETY)
