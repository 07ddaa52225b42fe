"""Which layer hurts: the exact analysis against brute force, and the estimate against the exact."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from culprits import planted
from language_models import language_model
from torch import Tensor, nn
from torch.nn import functional

import octavo
from octavo.errors import CalibrationError, InputError
from octavo.graph.graph import Graph
from octavo.graph.program import compile_steps, steps_of
from octavo.measuring.layers.sensitivity import _ranks, _spearman
from octavo.measuring.layers.study import Score
from octavo.measuring.layers.variants import all_but, layers_of, only
from octavo.measuring.metrics import Likeness
from octavo.quantization.convert import quantize_graph


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(x + self.conv2(functional.relu(self.conv1(x))))
        result: Tensor = self.fc(functional.max_pool2d(x, 2).mean((2, 3)))
        return result


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture
def data() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))) for _ in range(3)]


def _run(graph: Graph, x: Tensor) -> Tensor:
    names = [given.name for given in graph.inputs]
    result: Tensor = compile_steps(names, steps_of(graph), graph.output_names(), graph.constants)(
        x
    )[0]
    return result


def test_one_layer_at_a_time_is_what_brute_force_gives(
    net: nn.Module, data: list[tuple[Tensor, Tensor]]
) -> None:
    found = octavo.sensitivity(
        net, calibration=data, data=data, target="x86", bias_correction=False
    )
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    graph = octavo.capture(net, images)
    decided = octavo.plan(graph, target="x86")
    qparams = octavo.calibrate(graph, decided, [x for x, _ in data]).qparams
    exact = _run(graph, images)
    assert {layer.layer for layer in found.layers} == {"stem", "conv1", "conv2", "fc"}
    for layer in found.layers:
        for chosen, db, metric in (
            (only, layer.alone_db, layer.alone),
            (all_but, layer.without_db, layer.without),
        ):
            kept = chosen(graph, decided, layer.layer)
            variant = quantize_graph(graph, kept, qparams)
            logits = _run(variant, images)
            likeness = Likeness()
            likeness.update(exact, logits)
            assert db == pytest.approx(likeness.sqnr_db, abs=1e-3), layer.layer
            right = 100 * (logits.argmax(1) == labels).float().mean()
            assert metric == pytest.approx(float(right), abs=1e-4)
    whole = Likeness()
    rounded = quantize_graph(graph, decided, qparams)
    whole.update(exact, _run(rounded, images))
    assert found.quantized_db == pytest.approx(whole.sqnr_db, abs=1e-3)
    assert found.samples == 48
    assert found.complete


def test_the_estimate_predicts_what_is_measured(
    net: nn.Module, data: list[tuple[Tensor, Tensor]]
) -> None:
    many = data * 8  # more directions at the output
    found = octavo.sensitivity(net, calibration=data, data=many, target="x86")
    for layer in found.layers:
        assert layer.alone_db is not None
        assert layer.estimate_db == pytest.approx(layer.alone_db, abs=2.0)
    assert found.spearman() == pytest.approx(1.0)


def test_the_whole_is_what_quantize_gives(
    net: nn.Module, data: list[tuple[Tensor, Tensor]]
) -> None:
    """Biases corrected, as they are there."""
    images = torch.cat([x for x, _ in data])
    for corrected in (True, False):
        q = octavo.quantize(net, calibration=data, target="x86", bias_correction=corrected)
        likeness = Likeness()
        with torch.no_grad():
            likeness.update(net(images), q.lower("reference")(images))
        found = octavo.sensitivity(
            net, calibration=data, data=data, target="x86", bias_correction=corrected
        )
        assert found.quantized_db == pytest.approx(likeness.sqnr_db, abs=1e-3)


@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_a_planted_culprit_ranks_first(kind: str) -> None:
    for seed in range(4):
        net, x, culprit = planted(kind, seed)
        found = octavo.sensitivity(net, calibration=[x], data=[x], target="x86")
        assert found.layers[0].layer == culprit  # as measured
        estimates = {layer.layer: layer.estimate_db for layer in found.layers}
        assert min(estimates, key=lambda name: estimates[name]) == culprit
        relieved = max(found.layers, key=lambda layer: layer.without_db or 0.0)
        assert relieved.layer == culprit


def test_the_estimate_alone_needs_no_labels(
    net: nn.Module, data: list[tuple[Tensor, Tensor]]
) -> None:
    images = [x for x, _ in data]
    found = octavo.sensitivity(net, calibration=images, data=images, exact=False, target="x86")
    both = octavo.sensitivity(net, calibration=images, data=images, target="x86")
    assert found.float_metric is None
    assert all(layer.alone_db is None for layer in found.layers)
    assert {s.layer: s.estimate_db for s in found.layers} == {
        s.layer: s.estimate_db for s in both.layers
    }
    assert found.quantized_db == pytest.approx(both.quantized_db, abs=0.1)  # kernels, and oracle
    estimates = [layer.estimate_db for layer in found.layers]
    assert estimates == sorted(estimates)
    assert "estimate dB" in str(found)
    assert "alone" not in str(found)


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_recurrent_layers_in_modes_without_calibration(mode: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.fc(self.lstm(x)[0][:, -1])
            return result

    torch.manual_seed(0)
    x = torch.randn(32, 5, 4)
    found = octavo.sensitivity(Net().eval(), x, data=[x] * 8, mode=mode, target="x86")
    assert {layer.layer for layer in found.layers} == {"lstm.lstm", "fc"}
    for layer in found.layers:
        assert layer.estimate_db == pytest.approx(layer.alone_db, abs=3.0)


def test_an_interruption_keeps_what_was_seen(
    net: nn.Module, data: list[tuple[Tensor, Tensor]]
) -> None:
    def interrupted() -> Iterator[tuple[Tensor, Tensor]]:
        yield data[0]
        raise KeyboardInterrupt

    found = octavo.sensitivity(net, calibration=data, data=interrupted(), target="x86")
    first = octavo.sensitivity(net, calibration=data, data=data[:1], target="x86")
    assert not found.complete
    assert found == replace(first, complete=False)
    assert "(interrupted)" in str(found)


def test_data(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> None:
    found = octavo.sensitivity(net, calibration=data, data=data[:1], target="x86")
    read = json.loads(found.to_json())
    assert [layer["layer"] for layer in read["layers"]] == [s.layer for s in found.layers]
    assert read["samples"] == 16


def test_variants_leave_all_else_as_it_was(net: nn.Module) -> None:
    graph = octavo.capture(net, torch.randn(2, 3, 8, 8))
    decided = octavo.plan(graph, target="x86")
    assert layers_of(graph, decided) == ["stem", "conv1", "conv2", "fc"]
    alone = only(graph, decided, "conv1")
    assert set(alone.quantized) == {"relu", "conv1.weight"}
    assert [node.name for node in graph.nodes if alone.runs_int8(node.name)] == ["conv1"]
    without = all_but(graph, decided, "conv1")
    # The shortcut reads what conv1 reads, so that stays as it is.
    assert set(decided.quantized) - set(without.quantized) == {"conv1.weight"}
    assert without.tensors["conv1"].runs == "float"
    without = all_but(graph, decided, "fc")
    assert set(decided.quantized) - set(without.quantized) == {"mean", "fc.weight"}


def test_what_is_missing(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(InputError, match="no data"):
        octavo.sensitivity(net, calibration=data, data=[], target="x86")
    with pytest.raises(CalibrationError, match="pass calibration="):
        octavo.sensitivity(net, data[0][0], data=data, mode="static", target="x86")
    with pytest.raises(InputError, match="metric='f1'"):
        octavo.sensitivity(net, calibration=data, data=data, metric="f1", target="x86")


def test_equal_values_share_their_rank() -> None:
    """scipy.stats.rankdata and spearmanr give the same."""
    assert _ranks([3.0, 1.0, 3.0, 2.0, 3.0]) == [3.0, 0.0, 3.0, 1.0, 3.0]
    assert _spearman([1.0, 2.0, 2.0, 3.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(0.9486833)
    assert _spearman([math.inf, math.inf, 1.0], [5.0, 5.0, 2.0]) == pytest.approx(1.0)
    assert _spearman([1.0, 1.0], [1.0, 2.0]) == 0.0


def test_parts_of_the_data_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    exact, outputs, labels = torch.randn(12, 4), torch.randn(12, 4), torch.randint(0, 4, (12,))
    whole, total = Score(None), Score(None)
    whole.update(exact, outputs, labels)
    for part in (slice(0, 5), slice(5, 12)):
        score = Score(None)
        score.update(exact[part], outputs[part], labels[part])
        total.add(score)
    assert total.value() == whole.value()
    assert total.likeness.sqnr_db == pytest.approx(whole.likeness.sqnr_db)
    assert whole.likeness.agreement is not None
    assert total.likeness.agreement == whole.likeness.agreement
    assert total.likeness.decisions == 12


def test_layers_of_a_language_model_are_ranked_by_divergence() -> None:
    """What a layer does alone to the distributions of the next token, worked out again."""
    model = language_model("llama")
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in path:
                parameter.mul_(0.1)
        model.model.layers[1].mlp.down_proj.weight[:, 0] *= 100  # four bits leave little else
    torch.manual_seed(0)
    data = [{"input_ids": torch.randint(3, 60, (2, 10))} for _ in range(2)]
    four = octavo.weight_only_qconfig(4)
    found = octavo.sensitivity(
        model,
        data=data,
        scope="modules",
        mode="weight_only",
        qconfig=four,
        only=["model.layers"],
        progress=False,
    )
    assert found.metric == "divergence"
    assert found.float_metric == 0.0
    assert found.layers[0].layer == "model.layers.1.mlp.down_proj"
    alone = [layer.alone for layer in found.layers]
    assert alone == sorted(alone, key=float, reverse=True)
    worst = found.layers[0]
    q = octavo.quantize(
        model, scope="modules", mode="weight_only", qconfig=four, only=[worst.layer]
    )
    total = 0.0
    for batch in data:
        with torch.no_grad():
            p, other = (net(**batch).logits[:, :-1].double().log_softmax(-1) for net in (model, q))
        total += float((p.exp() * (p - other)).sum())
    assert worst.alone == pytest.approx(total / (2 * 2 * 9), rel=1e-3)
    assert f"divergence 0.00000 -> {found.quantized_metric:.5f}" in str(found)
    plain = octavo.sensitivity(
        model,
        data=data,
        scope="modules",
        mode="weight_only",
        metric="top1",
        exact=False,
        progress=False,
    )
    assert plain.metric == "top1"
    assert plain.float_metric is not None
