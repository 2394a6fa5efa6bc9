"""Adapters: what stays in factors equals what is dense, PEFT reads what we write, and what does not fit is refused."""

import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.models import loading
from helpers.updates import lora, quantizers
from helpers.updates.lora import LowRank

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

FILE = "adapter_model.safetensors"


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def adapter(tiny_model) -> lora.Adapter:
    """A planted adapter on every linear module of the blocks, of a size that is seen in the logits."""
    found = {}
    for seed, name in enumerate(quantizers.linear_names(tiny_model.model)):
        d_out, d_in = tiny_model.model.get_submodule(name).weight.shape
        found[name] = LowRank(gaussian(d_out, 4, seed=seed), gaussian(4, d_in, seed=1000 + seed))
    return found


@pytest.fixture
def folder(adapter, tmp_path):
    lora.save_adapter(adapter, tmp_path / "adapter", {"seed": 1})
    return tmp_path / "adapter"


@pytest.fixture
def ids():
    return torch.arange(3, 60)[None]


@torch.no_grad()
def logits(model, ids) -> torch.Tensor:
    return model(input_ids=ids).logits


def change(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(code, *words):
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(StudyError, match=f"^{pattern}[^\n]*$", check=lambda error: error.code == code)


# ---------------------------------------------------------------- in factors


@pytest.mark.parametrize("shape", [(64, 4, 96), (96, 4, 64), (8, 8, 8), (5, 1, 7)])
def test_the_norm_is_that_of_the_dense_update(shape):
    d_out, rank, d_in = shape
    pair = LowRank(gaussian(d_out, rank, seed=1), gaussian(rank, d_in, seed=2))
    assert pair.norm() == pytest.approx(torch.linalg.norm(pair.left.double() @ pair.right.double()).item(), rel=1e-12)
    assert pair.dense().shape == (d_out, d_in)


def test_a_zero_update_has_norm_zero():
    assert LowRank(torch.zeros(5, 2), gaussian(2, 7, seed=1)).norm() == 0.0


def test_the_norm_of_what_is_not_finite_is_not_finite():
    assert math.isnan(LowRank(torch.full((5, 2), math.nan), gaussian(2, 7, seed=1)).norm())


@pytest.mark.parametrize("ranks", [(4, 4), (1, 6), (8, 3)])
def test_inner_product_and_cosine_are_those_of_the_dense_updates(ranks):
    a, b = (LowRank(gaussian(12, r, seed=r), gaussian(r, 20, seed=9 + i)) for i, r in enumerate(ranks))
    dense_a, dense_b = (pair.left.double() @ pair.right.double() for pair in (a, b))
    assert lora.inner(a, b) == pytest.approx(float((dense_a * dense_b).sum()), rel=1e-12)
    expected = torch.nn.functional.cosine_similarity(dense_a.flatten(), dense_b.flatten(), dim=0)
    assert lora.cosine(a, b) == pytest.approx(float(expected), rel=1e-12)
    assert lora.cosine(a, a.scaled(-3.0)) == pytest.approx(-1, rel=1e-12)


def test_a_zero_update_has_no_direction():
    zero, some = LowRank(torch.zeros(5, 2), gaussian(2, 7, seed=1)), LowRank(gaussian(5, 2, seed=2), gaussian(2, 7, seed=3))
    assert lora.inner(zero, some) == 0
    assert math.isnan(lora.cosine(zero, some))


def test_scaling_changes_the_left_factor_of_a_new_update():
    pair = LowRank(gaussian(5, 2, seed=1), gaussian(2, 7, seed=2))
    before = pair.left.clone()
    assert torch.equal(pair.scaled(3.0).left, 3 * before)
    assert pair.scaled(3.0).right is pair.right
    assert torch.equal(pair.left, before)


# ---------------------------------------------------------------- files


def test_saved_and_loaded_is_equal_bit_for_bit(adapter, folder):
    again = lora.load_adapter(folder)
    assert again.keys() == adapter.keys()
    for name, pair in adapter.items():
        assert torch.equal(pair.left, again[name].left)
        assert torch.equal(pair.right, again[name].right)
    assert json.loads((folder / "recipe.json").read_text()) == {"seed": 1}


def test_peft_loads_what_we_write_and_gives_the_same_logits(tiny, tiny_model, adapter, folder, ids):
    bare = logits(tiny_model.model, ids)
    theirs = logits(PeftModel.from_pretrained(loading.load(tiny, "fp32").model, folder).eval(), ids)
    ours = logits(lora.attach(tiny_model.model, adapter), ids)
    assert torch.equal(ours, theirs)
    assert (ours - bare).norm() > 0.05 * bare.norm()  # control: the adapter does something


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_alpha": 3}], ids=["plain", "rslora", "alpha"])
def test_we_load_what_peft_writes_with_its_scale(tiny, tiny_model, tmp_path, ids, options):
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **{"lora_alpha": 16, **options})
    theirs = get_peft_model(loading.load(tiny, "fp32").model, config).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_B" in name:
                p.copy_(gaussian(*p.shape, seed=len(name)))
    theirs.save_pretrained(tmp_path / "theirs")
    adapter = lora.load_adapter(tmp_path / "theirs")
    torch.testing.assert_close(logits(lora.attach(tiny_model.model, adapter), ids), logits(theirs, ids), atol=1e-5, rtol=1e-5)
    scale = options.get("lora_alpha", 16) / (math.sqrt(4) if options.get("use_rslora") else 4)
    stored = load_file(tmp_path / "theirs" / FILE)["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    assert torch.equal(adapter["model.layers.0.self_attn.q_proj"].left, scale * stored)


Q, DOWN, LAST = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.3.self_attn.k_proj"


@pytest.fixture
def ranks(tiny_model) -> lora.Adapter:
    """A planted adapter with another rank in every module, one of them 1 and one of them all zero."""
    found = {}
    for rank, name in enumerate((Q, DOWN, LAST), start=1):
        d_out, d_in = tiny_model.model.get_submodule(name).weight.shape
        found[name] = LowRank(gaussian(d_out, rank, seed=rank), gaussian(rank, d_in, seed=7 + rank))
    return {**found, DOWN: found[DOWN].scaled(0.0)}


def same(one: lora.Adapter, other: lora.Adapter) -> bool:
    equal = all(torch.equal(p.left, other[n].left) and torch.equal(p.right, other[n].right) for n, p in one.items())
    return one.keys() == other.keys() and equal


def test_a_rank_of_its_own_in_every_module_is_saved_loaded_and_read_by_peft(tiny, tiny_model, ranks, tmp_path, ids):
    bare = logits(tiny_model.model, ids)
    lora.save_adapter(ranks, tmp_path / "ranks", {})
    assert same(ranks, lora.load_adapter(tmp_path / "ranks"))
    theirs = logits(PeftModel.from_pretrained(loading.load(tiny, "fp32").model, tmp_path / "ranks").eval(), ids)
    ours = logits(lora.attach(tiny_model.model, ranks), ids)
    assert torch.equal(ours, theirs)
    assert (ours - bare).norm() > 1e-3 * bare.norm()  # control, with few small factors


def test_we_load_what_peft_writes_with_patterns_that_match_ends_of_names(tiny, tiny_model, tmp_path, ids):
    patterns = {"rank_pattern": {"q_proj": 2, "^model.layers.1.mlp.down_proj": 3}, "alpha_pattern": {"layers.[01].*": 5}}
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], **patterns)
    theirs = get_peft_model(loading.load(tiny, "fp32").model, config).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_B" in name:
                p.copy_(gaussian(*p.shape, seed=len(name)))
    theirs.save_pretrained(tmp_path / "theirs")
    found = lora.load_adapter(tmp_path / "theirs")
    modules = dict(theirs.named_modules())
    for name, pair in found.items():
        layer = modules[f"base_model.model.{name}"]
        assert pair.right.shape[0] == layer.r["default"]
        torch.testing.assert_close(pair.left, layer.scaling["default"] * layer.lora_B["default"].weight)
    shapes = {(pair.right.shape[0], modules[f"base_model.model.{name}"].lora_alpha["default"]) for name, pair in found.items()}
    assert shapes == {(2, 5), (3, 5), (4, 5), (2, 16), (4, 16)}  # control: the patterns do take different modules apart
    torch.testing.assert_close(logits(lora.attach(tiny_model.model, found), ids), logits(theirs, ids), atol=1e-5, rtol=1e-5)


def test_rslora_scales_each_module_by_its_own_rank(ranks, tmp_path):
    lora.save_adapter(ranks, tmp_path / "ranks", {})
    change(tmp_path / "ranks", use_rslora=True)
    found = lora.load_adapter(tmp_path / "ranks")
    for name, pair in ranks.items():
        torch.testing.assert_close(found[name].left, math.sqrt(pair.right.shape[0]) * pair.left)


class Twins(torch.nn.Module):
    """One linear layer whose name is the end of another's, and which differ in rank when adapted."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.twin = torch.nn.Linear(6, 5, bias=False)
            self.inner = torch.nn.ModuleDict({"twin": torch.nn.Linear(6, 5, bias=False)})

    def forward(self, x):
        return self.twin(x) + 10 * self.inner["twin"](x)

    def prepare_inputs_for_generation(self):  # what PEFT expects of a causal language model
        raise NotImplementedError


@pytest.mark.parametrize("named", [("twin",), ("inner.twin",), ("twin", "inner.twin"), ("inner.twin", "twin")])
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_a_name_that_is_the_end_of_another_does_not_catch_it(named, tmp_path):
    adapter = {n: LowRank(gaussian(5, r, seed=r), gaussian(r, 6, seed=9 + r)) for r, n in enumerate(named, start=1)}
    x, model = gaussian(3, 6, seed=5), Twins()
    expected = sum(weight * (x @ adapter[n].dense().T) for n, weight in (("twin", 1), ("inner.twin", 10)) if n in adapter)
    bare, ours = model(x).detach(), lora.attach(model, adapter)
    assert {n for n, m in ours.named_modules() if hasattr(m, "lora_A")} == {f"base_model.model.{n}" for n in named}
    torch.testing.assert_close(ours.get_base_model()(x), bare + expected)
    lora.save_adapter(adapter, tmp_path / "twins", {})
    theirs = PeftModel.from_pretrained(Twins(), tmp_path / "twins").get_base_model()
    torch.testing.assert_close(theirs(x), bare + expected)
    assert same(adapter, lora.load_adapter(tmp_path / "twins"))


# ---------------------------------------------------------------- on a model


def test_exchanging_gives_what_a_fresh_model_gives_and_comes_back(tiny, tiny_model, adapter, ids):
    other = {name: LowRank(-0.5 * pair.left, pair.right.flip(0)) for name, pair in adapter.items()}
    fresh = logits(lora.attach(loading.load(tiny, "fp32").model, other), ids)
    model = lora.attach(tiny_model.model, adapter)
    before = logits(model, ids)
    lora.exchange_(model, other)
    assert torch.equal(logits(model, ids), fresh)
    assert not torch.equal(fresh, before)
    lora.exchange_(model, adapter)
    assert torch.equal(logits(model, ids), before)
    assert not any(p.requires_grad for p in model.parameters())


def test_exchanging_in_bf16_rounds_as_attaching_does(tiny, adapter, ids):
    other = {name: pair.scaled(-0.3) for name, pair in adapter.items()}
    fresh = logits(lora.attach(loading.load(tiny).model, other), ids)
    model = lora.attach(loading.load(tiny).model, adapter)
    lora.exchange_(model, other)
    assert torch.equal(logits(model, ids), fresh)


EXCHANGES = {
    "a module less": (lambda a: {n: p for n, p in a.items() if n != LAST}, LAST),
    "another module": (lambda a: {**a, "model.layers.9.mlp.up_proj": a[LAST]}, "model.layers.9.mlp.up_proj"),
    "another rank": (lambda a: {**a, LAST: LowRank(a[LAST].left[:, :2], a[LAST].right[:2])}, LAST),
    "nothing": (lambda a: {}, "model.layers.0.mlp.down_proj"),
}


@pytest.mark.parametrize("case", EXCHANGES)
def test_other_modules_or_ranks_are_not_exchanged(tiny_model, adapter, ids, case):
    build, first = EXCHANGES[case]
    model = lora.attach(tiny_model.model, adapter)
    before = logits(model, ids)
    with refused(NOT_COMPARABLE, f"'{first}'", "fresh model"):
        lora.exchange_(model, build({name: pair.scaled(2.0) for name, pair in adapter.items()}))
    assert torch.equal(logits(model, ids), before)


def test_a_model_without_adapter_has_nothing_to_exchange(tiny_model, adapter):
    with refused(NOT_COMPARABLE, "the attached one none"):
        lora.exchange_(tiny_model.model, adapter)


def test_attached_and_merged_agree(tiny, tiny_model, adapter, ids):
    merged = loading.load(tiny, "fp32").model
    lora.merge(merged, adapter)
    torch.testing.assert_close(logits(lora.attach(tiny_model.model, adapter), ids), logits(merged, ids), atol=1e-4, rtol=1e-4)


def test_merging_adds_the_dense_update_and_rounds_once(tiny, adapter):
    before, model = loading.load(tiny).model, loading.load(tiny).model
    lora.merge(model, adapter)
    for name, pair in adapter.items():
        expected = (before.get_submodule(name).weight.float() + pair.dense()).bfloat16()
        assert torch.equal(model.get_submodule(name).weight, expected)
    assert torch.equal(model.lm_head.weight, before.lm_head.weight)


def test_attaching_freezes_everything_and_keeps_the_models_precision(tiny, adapter):
    model = lora.attach(loading.load(tiny).model, adapter)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


def test_neither_changes_the_adapter(tiny, adapter):
    before = {name: (pair.left.clone(), pair.right.clone()) for name, pair in adapter.items()}
    lora.merge(loading.load(tiny).model, adapter)
    model = lora.attach(loading.load(tiny, "fp32").model, adapter)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert all(
        torch.equal(pair.left, before[name][0]) and torch.equal(pair.right, before[name][1]) for name, pair in adapter.items()
    )


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("put", [lora.attach, lora.merge])
def test_an_adapter_of_another_shape_names_the_first_module_and_both_shapes(tiny_model, adapter, put):
    name = "model.layers.0.self_attn.k_proj"
    wrong = {**adapter, name: LowRank(torch.zeros(9, 4), torch.zeros(4, 11))}
    before = {key: tensor.clone() for key, tensor in tiny_model.model.state_dict().items()}
    with refused(NOT_COMPARABLE, f"'{name}'", r"\(9, 11\)", r"\(64, 128\)"):
        put(tiny_model.model, wrong)
    assert all(torch.equal(before[key], tensor) for key, tensor in tiny_model.model.state_dict().items())


@pytest.mark.parametrize("put", [lora.attach, lora.merge])
def test_an_adapter_for_a_module_that_is_not_there_is_refused(tiny_model, adapter, put):
    name = "model.layers.17.self_attn.q_proj"
    with refused(NOT_COMPARABLE, f"'{name}'", "another base"):
        put(tiny_model.model, {**adapter, name: next(iter(adapter.values()))})


@pytest.mark.parametrize("name", ["model.layers.0", "model.norm"])
def test_an_adapter_for_a_module_that_is_not_linear_is_refused(tiny_model, name):
    with refused(NOT_COMPARABLE, f"'{name}'"):
        lora.attach(tiny_model.model, {name: LowRank(torch.zeros(128, 4), torch.zeros(4, 128))})


OPTIONS = {
    "use_dora": True,
    "bias": "all",
    "modules_to_save": ["lm_head"],
    "lora_bias": True,
    "fan_in_fan_out": True,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_not_plain_lora_is_refused_by_name(folder, option):
    change(folder, **{option: OPTIONS[option]})
    with refused(REFUSED, "adapter", option, "merge it first"):
        lora.load_adapter(folder)


def test_another_kind_of_adapter_is_refused(folder):
    change(folder, peft_type="IA3")
    with refused(REFUSED, "'IA3'"):
        lora.load_adapter(folder)


def rewrite(folder, change_tensors):
    tensors = load_file(folder / FILE)
    change_tensors(tensors)
    save_file(tensors, folder / FILE)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"
DAMAGES = {
    "no lora_B": (lambda t: t.pop(f"{FIRST}.lora_B.weight"), "lacks .*q_proj.lora_B.weight"),
    "no lora_A": (lambda t: t.pop(f"{FIRST}.lora_A.weight"), "lacks .*q_proj.lora_A.weight"),
    "nothing": (lambda t: t.clear(), "no tensors"),
    "a magnitude": (lambda t: t.update({f"{FIRST}.lora_magnitude_vector": torch.ones(128)}), "lora_magnitude_vector"),
    "a bias": (lambda t: t.update({f"{FIRST}.lora_B.bias": torch.ones(128)}), r"lora_B\.bias"),
    "factors that do not meet": (lambda t: t.update({f"{FIRST}.lora_B.weight": torch.ones(128, 3)}), "do not meet"),
    "another rank": (
        lambda t: t.update({f"{FIRST}.lora_B.weight": torch.ones(128, 2), f"{FIRST}.lora_A.weight": torch.ones(2, 128)}),
        "rank 2, its config says 4",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tensors_are_refused_and_never_left_out(folder, damage):
    apply, words = DAMAGES[damage]
    rewrite(folder, apply)
    with refused(REFUSED, words):
        lora.load_adapter(folder)


def test_a_pickle_or_a_missing_file_is_refused(folder):
    torch.save({}, folder / FILE)
    with refused(REFUSED, "is not safetensors"):
        lora.load_adapter(folder)
    (folder / FILE).rename(folder / "adapter_model.bin")
    with refused(REFUSED, "no adapter_model.safetensors", "safe_serialization"):
        lora.load_adapter(folder)


PATTERN = '{"r": 4, "lora_alpha": 4, "rank_pattern": {"%s": %s}}'
CONTENTS = [None, "{", "[]", '{"r": 4}', '{"r": 0, "lora_alpha": 4}', '{"r": -4, "lora_alpha": "x"}',
            '{"r": 4, "lora_alpha": NaN}', PATTERN % ("q_proj", 0), PATTERN % ("q_proj", '"x"'),
            PATTERN % ("q_proj(", 4)]  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
def test_an_unreadable_config_is_refused(folder, content):
    (folder / "adapter_config.json").unlink()
    if content is not None:
        (folder / "adapter_config.json").write_text(content)
    with refused(REFUSED, "adapter_config.json"):
        lora.load_adapter(folder)


def test_an_empty_adapter_is_not_saved(tmp_path):
    with refused(REFUSED, "no module"):
        lora.save_adapter({}, tmp_path / "empty", {})
    assert not (tmp_path / "empty").exists()


def test_shapes_in_signatures_are_checked_in_tests():
    """The control of the checks themselves: factors that do not meet are refused at the call."""
    with pytest.raises(Exception, match="right"):
        lora.LowRank(torch.zeros(6, 2), torch.zeros(3, 5))
