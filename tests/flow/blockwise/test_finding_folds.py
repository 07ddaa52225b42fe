"""Where scales can go: what is found in models of transformers, and that nothing changes by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from language_models import language_model
from torch import Tensor, nn

import octavo
from octavo.errors import InputError
from octavo.flow.blockwise import finding_folds
from octavo.flow.blockwise.blocks import chains_of, recorded
from octavo.flow.blockwise.finding_folds import find_folds
from octavo.flow.blockwise.measuring_inputs import float_layers
from octavo.flow.blockwise.model_folds import Folds, shared_parameters
from octavo.flow.running import Calls
from octavo.model.nn import quantized_form
from octavo.model.nn.experts import Experts
from octavo.model.nn.linear import Linear
from octavo.numerics.sqnr import sqnr_db


def test_weights_that_cannot_be_doubled_stay_what_they_are() -> None:
    weight = torch.tensor([[40000.0, 1.0], [3.0, -65504.0]], dtype=torch.float16)
    before = weight.clone()
    with finding_folds._doubled(weight, weight[:, 0].clone(), torch.tensor([0, 1])):
        assert weight[0].tolist() == [float("inf"), 2.0]
    assert torch.equal(weight, before)


FOUR = octavo.weight_only_qconfig(4, group_size=32)
QKV = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
LLAMA = [QKV, {"self_attn.o_proj"}, {"mlp.gate_proj", "mlp.up_proj"}, {"mlp.down_proj"}]
EXPERTS = [
    *({f"mlp.experts.down_proj.{n}"} for n in range(4)),
    QKV,
    {"self_attn.o_proj"},
    {f"mlp.experts.gate_up_proj.{n}" for n in range(4)},
]

# name -> what reads the inputs that can be scaled in the first block, and what else reads inputs
FOUND: dict[str, tuple[list[set[str]], set[str]]] = {
    "llama": (LLAMA, set()),
    "qwen 3": (LLAMA, set()),
    "gemma": (LLAMA, set()),
    "gemma 3": (LLAMA, set()),
    "phi": ([QKV | {"mlp.fc1"}, {"self_attn.dense"}], {"mlp.fc2"}),
    "phi 3": (
        [
            {"self_attn.qkv_proj"},
            {"self_attn.o_proj"},
            {"mlp.gate_up_proj"},
            {"mlp.down_proj"},
        ],
        set(),
    ),
    "gpt 2": ([{"attn.c_attn"}, {"attn.c_proj"}, {"mlp.c_fc"}], {"mlp.c_proj"}),
    "gpt neox": (
        [{"attention.query_key_value"}, {"attention.dense"}, {"mlp.dense_h_to_4h"}],
        {"mlp.dense_4h_to_h"},
    ),
    "opt": ([QKV, {"self_attn.out_proj"}, {"fc1"}, {"fc2"}], set()),
    "bloom": (
        [{"self_attention.query_key_value"}, {"self_attention.dense"}, {"mlp.dense_h_to_4h"}],
        {"mlp.dense_4h_to_h"},
    ),
    "mixtral": (EXPERTS, set()),
    "qwen 3, experts": (EXPERTS, set()),
    "t5": (
        [
            {f"layer.0.SelfAttention.{name}" for name in "qkv"},
            {"layer.0.SelfAttention.o"},
            {"layer.1.DenseReluDense.wi"},
            {"layer.1.DenseReluDense.wo"},
        ],
        set(),
    ),
}


def data(name: str) -> dict[str, Tensor]:
    torch.manual_seed(3)
    batch = {"input_ids": torch.randint(3, 60, (4, 12))}
    return batch | ({"decoder_input_ids": batch["input_ids"][:, :9]} if name == "t5" else {})


def folds_of(model: nn.Module, batch: Any) -> Folds:
    forms = (Linear, Experts)
    qconfigs = {p: FOUR for p, m in model.named_modules() if quantized_form(m) in forms}
    layers = {one.layer.name: one for one in float_layers(model, qconfigs, "x86")}
    calls = Calls.of(model, None, [batch], None, None)
    chains = recorded(model, calls.first[:1], chains_of(model, layers))
    return Folds.of(model, calls.first[0], chains, layers)


@pytest.mark.parametrize("name", FOUND)
def test_what_is_found(name: str) -> None:
    model, batch = language_model(name), data(name)
    folds = folds_of(model, batch)
    path, found = next(iter(folds.by_block.items()))
    right, left = FOUND[name]
    inside = [{at.removeprefix(f"{path}.") for at in fold.paths} for fold in found]
    assert sorted(map(sorted, inside)) == sorted(map(sorted, right))
    linears = {
        at
        for at, module in model.get_submodule(path).named_modules()
        if quantized_form(module) is Linear
    }
    assert linears - set().union(*inside) == left
    head = {at for fold in folds.by_block[""] for at in fold.paths}
    is_tied = name in ("gemma", "gemma 3", "gpt 2", "opt", "bloom", "t5")
    assert head == (set() if is_tied else {"lm_head"})
    with torch.no_grad():
        exact = model(**batch).logits
        for fold in (fold for found in folds.by_block.values() for fold in found):
            own = fold.made_by >= 0
            scales = torch.exp2(4 * torch.rand(int(fold.made_by.max()) + 1) - 2)
            fold.apply(torch.where(own, scales[fold.made_by.clamp(min=0)], 1.0))
        logits = model(**batch).logits
    error = float((logits - exact).double().square().sum())
    assert sqnr_db(float(exact.double().square().sum()), error) > 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_other_floats_are_left_as_they_were(name: str, dtype: torch.dtype) -> None:
    model, batch = language_model(name).to(dtype), data(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    folds = folds_of(model, batch)
    assert len(folds.by_block["model.layers.0"]) == 4
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_heads_that_share_a_value_share_a_scale() -> None:
    folds = folds_of(language_model("llama"), data("llama"))
    (fold,) = (f for f in folds.by_block["model.layers.0"] if "o_proj" in f.paths[0])
    heads = torch.arange(32).reshape(2, 1, 16).expand(2, 2, 16).flatten()
    assert torch.equal(fold.made_by, heads)


class Residual(nn.Module):
    """A norm whose result goes past the layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x + self.layer(x)  # type: ignore[no-any-return]


class Activated(nn.Module):
    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.up, self.function, self.down = nn.Linear(32, 64), function, nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.function(self.up(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (Residual(), 0),
        (Activated(nn.GELU()), 0),
        (Activated(nn.ReLU()), 1),
        (Activated(nn.LeakyReLU()), 1),
        (Activated(nn.Softmax(-1)), 0),
        (nn.Sequential(nn.LayerNorm(32, elementwise_affine=False), nn.Linear(32, 32)), 0),
        (nn.Sequential(nn.RMSNorm(32), nn.Linear(32, 32)), 1),
    ],
    ids=str,
)
def test_what_changes_by_scaling_is_not_scaled(model: nn.Module, count: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 32)
    qconfigs = {p: FOUR for p, m in model.named_modules() if isinstance(m, nn.Linear)}
    layers = {one.layer.name: one for one in float_layers(model, qconfigs, "x86")}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        folds = find_folds(model, lambda: model(x), layers, shared_parameters(model))
    assert len(folds) == count
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Shares(nn.Module):
    """The values of the first block are read in the second, which no block by itself shows."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.RMSNorm(32), nn.Linear(32, 32), nn.Linear(32, 32)
            self.kept: Tensor | None = None
            self.before: tuple[Shares.Block, ...] = ()

        def forward(self, x: Tensor) -> Tensor:
            self.kept = self.up(self.norm(x))
            past = sum((block.kept for block in self.before if block.kept is not None), 0)
            return x + self.down(self.kept) + past  # type: ignore[no-any-return]

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Shares.Block(), Shares.Block()])
        second: Any = self.blocks[1]
        second.before = (self.blocks[0],)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_what_another_block_reads_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(InputError, match="outside of a block reads what is scaled"):
        folds_of(Shares().eval(), torch.randn(64, 32))
