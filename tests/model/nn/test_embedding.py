"""`octavo.nn.Embedding`: rows of integers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import octavo
from octavo.compat.quantization import (
    default_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    quantize_dynamic,
)
from octavo.errors import InputError, PlanError


def test_rows_by_hand() -> None:
    table = nn.Embedding.from_pretrained(torch.tensor([[1.27, -0.5], [0.0, 2.54], [0.0, 0.0]]))
    q = octavo.nn.Embedding.from_float(table, octavo.weight_only_qconfig())
    rows = q(torch.tensor([[1, 0], [2, 1]]))
    expected = torch.tensor([[[0.0, 2.54], [1.27, -0.5]], [[0.0, 0.0], [0.0, 2.54]]])
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)
    assert q(torch.tensor(1)).shape == (2,)
    assert q(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3, 2)


@pytest.mark.parametrize("bits", [4, 8])
def test_it_reads_what_the_captured_table_does(bits: int) -> None:
    torch.manual_seed(0)
    qconfig = octavo.weight_only_qconfig(bits, group_size=8 if bits == 4 else None)
    table, ids = nn.Embedding(50, 16), torch.randint(0, 50, (3, 4))
    graph = octavo.quantize(table, ids, qconfig=qconfig, progress=False)
    assert torch.equal(octavo.nn.from_float(table, qconfig)(ids), graph(ids))


def test_it_returns_the_dtype_that_it_had() -> None:
    table = nn.Embedding(10, 4).bfloat16()
    q = octavo.nn.from_float(table, octavo.dynamic_qconfig())
    assert q(torch.tensor([1])).dtype == torch.bfloat16
    assert q.runs == "weight_only"


class Scaled(nn.Embedding):
    """As Gemma's, whose scale is a tensor, and Bart's, whose scale is a number."""

    def __init__(self, scale: float | torch.Tensor) -> None:
        super().__init__(50, 16)
        self.embed_scale = scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * self.embed_scale


@pytest.mark.parametrize("scale", [4.0, torch.tensor(4.0)], ids=["number", "tensor"])
def test_a_table_that_multiplies_its_rows(scale: float | torch.Tensor) -> None:
    table, ids = Scaled(scale), torch.randint(0, 50, (3, 4))
    q = octavo.nn.from_float(table, octavo.weight_only_qconfig())
    assert isinstance(q, octavo.nn.Embedding)
    assert q.embed_scale == 4.0
    plain = nn.Embedding(50, 16)
    plain.weight = table.weight
    own = octavo.nn.from_float(plain, octavo.weight_only_qconfig())
    assert torch.equal(q(ids), own(ids) * 4)
    twin = octavo.nn.from_description(q.describe(), q.tensors())
    assert torch.equal(twin(ids), q(ids))


def test_a_table_that_does_something_else_to_its_rows_has_no_form() -> None:
    class Shifted(Scaled):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 1

    class Positions(Scaled):
        def forward(self, mask: torch.Tensor, past: int) -> torch.Tensor:
            return super().forward(mask + past)

    assert octavo.nn.quantized_form(Shifted(4.0)) is None
    assert octavo.nn.quantized_form(Positions(4.0)) is None


def test_indices_beyond_the_table() -> None:
    q = octavo.nn.from_float(nn.Embedding(10, 4), octavo.weight_only_qconfig())
    for index in (-1, 10):
        with pytest.raises(InputError, match=f"beyond the 10 rows of the table: .* {index}"):
            q(torch.tensor([index]))
    with pytest.raises(InputError, match="int64 or int32, not"):
        q(torch.rand(3))


def test_a_table_that_changes_at_each_call_is_refused() -> None:
    with pytest.raises(PlanError, match="max_norm"):
        octavo.nn.from_float(nn.Embedding(10, 4, max_norm=1.0), octavo.weight_only_qconfig())


BAGS = {
    "mean": {},
    "sum, padded": {"mode": "sum", "padding_idx": 2},
    "max, padded": {"mode": "max", "padding_idx": 19},
    "sum, with the last end": {"mode": "sum", "include_last_offset": True},
}


def test_bags_by_hand() -> None:
    bag = nn.EmbeddingBag.from_pretrained(
        torch.tensor([[1.27, -0.5], [0.0, 2.54], [1.0, 1.0]]), mode="sum", padding_idx=2
    )
    q = octavo.nn.EmbeddingBag.from_float(bag, octavo.weight_only_qconfig())
    sums = q(torch.tensor([0, 1, 2, 1]), torch.tensor([0, 2, 4]))
    expected = torch.tensor([[1.27, 2.04], [0.0, 2.54], [0.0, 0.0]])
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-6)
    weighted = q(
        torch.tensor([[0, 1], [2, 1]]), per_sample_weights=torch.tensor([[2.0, 1], [9, 3]])
    )
    expected = torch.tensor([[2.54, 1.54], [0.0, 7.62]])
    torch.testing.assert_close(weighted, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BAGS)
@pytest.mark.parametrize("mode", ["weight_only", "dynamic", "static"])
def test_bags_of_a_captured_model(name: str, mode: str) -> None:
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(20, 8, **BAGS[name])  # type: ignore[arg-type]
    offsets = [0, 3, 3, 7, *([9] if bag.include_last_offset else [])]
    call = (torch.tensor([0, 2, 19, 4, 2, 7, 8, 1, 2]), torch.tensor(offsets))
    graph = octavo.quantize(
        bag,
        call,
        mode=mode,
        calibration=[call] if mode == "static" else None,
        inputs=lambda batch: batch,
        progress=False,
    )
    assert graph.lowered.kernels == {"embedding_bag": "octavo.embedding_bag"}
    assert graph.plan.tensors["weight"].runs == "weight_only"
    module = octavo.nn.from_float(bag, octavo.weight_only_qconfig())
    assert torch.equal(module(*call), graph(*call))
    oracle = graph.lower("reference")(*call)
    torch.testing.assert_close(oracle, graph(*call), rtol=1e-5, atol=1e-6)
    assert float((bag(*call) - oracle).norm() / oracle.norm()) < 0.02


@given(
    bags=st.integers(0, 5),
    each=st.integers(1, 4),
    mode=st.sampled_from(["sum", "mean", "max"]),
    padding=st.sampled_from([None, 0, 6]),
    symmetric=st.booleans(),
)
def test_bags_of_any_size(
    bags: int, each: int, mode: str, padding: int | None, symmetric: bool
) -> None:
    bag = nn.EmbeddingBag(7, 4, mode=mode, padding_idx=padding)
    q = octavo.nn.from_float(bag, octavo.weight_only_qconfig(symmetric=symmetric))
    exact = nn.EmbeddingBag(7, 4, mode=mode, padding_idx=padding)
    exact.weight = nn.Parameter(q.dequantized()["weight"])
    ids = torch.randint(0, 7, (bags, each))
    torch.testing.assert_close(q(ids), exact(ids).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("runtime", ["torch", "reference", "onnxruntime", "openvino"])
def test_no_samples_are_no_bags(runtime: str) -> None:
    model = nn.Sequential(nn.EmbeddingBag(9, 4, mode="max"), nn.Linear(4, 3)).eval()
    q = octavo.quantize(model, torch.randint(0, 9, (4, 5)), mode="dynamic", progress=False)
    assert q.lower(runtime)(torch.zeros(0, 5, dtype=torch.int64)).shape == (0, 3)


def test_a_recommendation_model_is_small_in_every_way(tmp_path: Path) -> None:
    class Ranks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(2000, 32, mode="sum"), nn.Linear(32, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.bag(ids))
            return result

    model, ids = Ranks().eval(), torch.randint(0, 2000, (8, 5))
    graph = octavo.quantize(model, ids, mode="weight_only", progress=False)
    graph.save(tmp_path / "ranks.octavo")
    assert (tmp_path / "ranks.octavo").stat().st_size < 0.35 * 4 * 2000 * 32
    loaded = octavo.load(tmp_path / "ranks.octavo")
    assert torch.equal(loaded(ids), graph(ids))
    assert torch.equal(loaded(ids[:3]), graph(ids)[:3])
    spec = {nn.EmbeddingBag: float_qparams_weight_only_qconfig, nn.Linear: default_dynamic_qconfig}
    old = quantize_dynamic(model, spec)
    assert str(old.bag).startswith("WeightOnlyEmbeddingBag(2000, 32, mode='sum'")
    assert float((old(ids) - model(ids)).norm() / model(ids).norm()) < 0.02
    octavo.export_onnx(graph, tmp_path / "ranks.onnx")
    assert torch.allclose(graph.lower("onnxruntime")(ids), graph(ids), atol=1e-3)


def test_bags_that_cannot_be() -> None:
    q = octavo.nn.from_float(nn.EmbeddingBag(10, 4), octavo.weight_only_qconfig())
    ids = torch.tensor([[1, 2], [3, 4]])
    with pytest.raises(InputError, match="leave them out"):
        q(ids, torch.tensor([0]))
    with pytest.raises(InputError, match=r"\[n\] with offsets of the bags"):
        q(ids[0])
    with pytest.raises(InputError, match="one for each index"):
        q(ids, per_sample_weights=torch.rand(2, 2))
    with pytest.raises(InputError, match="offset"):
        q(ids[0], torch.tensor([1, 0]))


def test_an_index_below_zero_is_none_of_a_captured_table() -> None:
    ids = torch.tensor([1, 2])
    graph = octavo.quantize(nn.Embedding(10, 4), ids, mode="weight_only", progress=False)
    with pytest.raises(InputError, match=r"row -1 of a table|index -1 is out of range"):
        graph(torch.tensor([-1, 2]))
