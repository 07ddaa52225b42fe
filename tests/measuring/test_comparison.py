from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import InputError, RuntimeUnavailable
from octavo.measuring.comparison import compare

torch_only = {"rounds": 1, "progress": False}


class Classifier(nn.Module):
    """Its hidden weights decide nothing: logits are the input's first entries, times ten."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 10, bias=False)
        self.drop = nn.Dropout(0.9)
        with torch.no_grad():
            self.fc.weight.copy_(10 * torch.eye(10, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc(x))


@pytest.fixture
def model() -> nn.Module:
    return Classifier()


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    x = torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(0))
    labels = x[:, :, :10].argmax(-1)
    labels[0, 0] = (labels[0, 0] + 1) % 10  # one of 24 is wrong
    return list(zip(x, labels, strict=True))


@pytest.fixture(scope="module")
def q(batches: list[tuple[Tensor, Tensor]]) -> octavo.QuantizedModel:
    target = octavo.host_target()
    return octavo.quantize(Classifier(), calibration=batches, target=target, progress=False)


def test_fp32_bf16_and_int8_side_by_side(model, q, batches, tmp_path: Path) -> None:
    result = compare(model, q, batches, rounds=2, progress=False)
    assert [row.name for row in result.rows] == ["fp32", "bf16", "int8"]
    assert (result.samples, result.batch_size, result.rounds, result.metric) == (24, 8, 2, "top1")
    fp32, bf16, int8 = result.rows
    assert fp32.metric == pytest.approx(100 * 23 / 24)
    assert (fp32.agreement, fp32.sqnr_db, fp32.speedup, fp32.size_ratio) == (None, None, 1.0, 1.0)
    assert 30 < bf16.sqnr_db < 70
    assert 25 < int8.sqnr_db < 60
    assert bf16.agreement > 90
    q.save(tmp_path / "q.octavo")
    assert int8.size_bytes == (tmp_path / "q.octavo").stat().st_size
    assert 640 < fp32.size_bytes < 1000  # 16 x 10 float32, and a header
    assert fp32.size_bytes - bf16.size_bytes == pytest.approx(320, abs=8)
    for row in result.rows:
        assert 0 < row.latency_ms <= row.p95_ms
        assert row.throughput == pytest.approx(8000 / row.latency_ms)


def test_what_chance_does_is_counted_sample_by_sample(model) -> None:
    """The other model takes class 0 for class 1 and the other way round."""
    swapped = Classifier()
    with torch.no_grad():
        swapped.fc.weight[:2] = model.fc.weight[[1, 0]]
    x = torch.eye(10, 16)[[0] * 5 + [1] * 3 + [2] * 12]
    data = [(x[:7], torch.tensor([0] * 7)), (x[7:], torch.tensor([0] + [2] * 12))]
    fp32, bf16, other = compare(model, {"other": swapped}, data, **torch_only).rows
    assert (fp32.lost, fp32.won, fp32.p_value) == (None, None, None)
    assert fp32.interval == bf16.interval == pytest.approx((63.958, 94.764), abs=1e-2)  # 17 of 20
    assert (bf16.lost, bf16.won, bf16.p_value) == (0, 0, 1.0)
    assert (other.lost, other.won, other.metric) == (5, 3, 75.0)
    assert other.p_value == pytest.approx(2 * (1 + 8 + 28 + 56) / 256)


def test_several_labels_of_a_sample_are_not_tested(model) -> None:
    x = torch.rand(2, 4, 16)
    data = [(x, x[..., :10].argmax(-1))]
    q = octavo.quantize(model, calibration=data, target=octavo.host_target(), progress=False)
    int8 = compare(model, q, data, **torch_only)["int8"]
    assert int8.metric is not None
    assert (int8.interval, int8.lost, int8.won, int8.p_value) == (None, None, None, None)


def test_the_model_is_left_as_it_was(model, q, batches) -> None:
    model.train()
    model.drop.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compare(model, q, batches, **torch_only)
    assert model.training
    assert model.fc.training
    assert not model.drop.training
    assert model.fc.weight.dtype is torch.float32
    assert model.fc.weight.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_model_is_left_as_it_was_after_an_error(model, q) -> None:
    model.train()
    threads = torch.get_num_threads()
    with pytest.raises(InputError):
        compare(model, q, [torch.zeros(2, 3)], threads=1, **torch_only)
    assert model.training
    assert torch.get_num_threads() == threads


def test_a_row_for_each_runtime(model, q, batches) -> None:
    result = compare(model, q, batches, runtimes=["torch", "reference"], **torch_only)
    assert [row.name for row in result.rows[2:]] == ["int8 torch", "int8 reference"]
    assert [row.runtime for row in result.rows[2:]] == ["torch", "reference"]
    assert result["int8 torch"].size_bytes == result["int8 reference"].size_bytes
    with pytest.raises(RuntimeUnavailable, match="abacus"):
        compare(model, q, batches, runtimes=["abacus"], **torch_only)


def test_threads_are_stated_and_given_back(model, q, batches) -> None:
    before = torch.get_num_threads()
    assert compare(model, q, batches, threads=1, **torch_only).threads == 1
    assert torch.get_num_threads() == before
    assert compare(model, q, batches, **torch_only).threads == before


def test_data_streams(model, q) -> None:
    alive: list[Tensor] = []

    def stream() -> Iterator[Tensor]:
        import weakref

        references = []
        for _ in range(20):
            batch = torch.rand(4, 16)
            references.append(weakref.ref(batch))
            yield batch
            del batch
            alive.append(sum(reference() is not None for reference in references))

    result = compare(model, q, stream(), **torch_only)
    assert result.samples == 80
    assert max(alive) <= 3  # the first batch, for the latency, and the one at work


def test_without_labels_there_is_agreement_and_sqnr(model, q, batches) -> None:
    result = compare(model, q, [x for x, _ in batches], **torch_only)
    assert result["int8"].metric is None
    assert result["int8"].agreement > 90
    assert result["int8"].sqnr_db > 25
    assert result.notes == (
        "no top1: the data has no labels",
        "int8: 100 % of the multiply-adds in int8",
    )


def test_labels_that_do_not_fit(model, q, batches) -> None:
    data = [(x, torch.rand(8)) for x, _ in batches]
    result = compare(model, q, data, **torch_only)
    assert result.notes == (
        "no top1: the labels are torch.float32, not class indices",
        "int8: 100 % of the multiply-adds in int8",
    )
    with pytest.raises(InputError, match="'top1' cannot be computed on batch 0: the labels are"):
        compare(model, q, data, metric="top1", **torch_only)


def test_labels_missing_in_a_later_batch(model, q, batches) -> None:
    data = [batches[0], batches[1][0]]
    assert compare(model, q, data, **torch_only)["fp32"].metric is None
    with pytest.raises(InputError, match="batch 1: the data has no labels"):
        compare(model, q, data, metric="top1", **torch_only)


def test_a_metric_of_the_whole_set(model, q, batches) -> None:
    seen = []

    def mean_score(outputs: Tensor, labels: Tensor) -> float:
        seen.append((outputs.dtype, tuple(outputs.shape), tuple(labels.shape)))
        return float(outputs.mean())

    result = compare(model, q, batches, metric=mean_score, **torch_only)
    assert seen == [(torch.float32, (24, 10), (24,))] * 3
    assert result.metric == "mean_score"
    assert result["fp32"].metric == pytest.approx(5.0, abs=1.0)
    assert result.to_dict()["int8"]["mean_score"] == result["int8"].metric


class Equal:
    """Makes of ``==`` another object, as metrics of torchmetrics do, and is one sample's share."""

    def __eq__(self, other: object) -> Equal:  # type: ignore[override]
        return Equal()

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, outputs: Tensor, labels: Tensor) -> float:
        return float((outputs.argmax(1) == labels).float().mean())


def test_a_metric_that_is_equal_to_anything(model, q, batches) -> None:
    result = compare(model, q, batches, metric=Equal(), **torch_only)  # type: ignore[arg-type]
    assert result["fp32"].metric == pytest.approx(23 / 24)
    found = octavo.sensitivity(
        model, calibration=batches, data=batches, metric=Equal(), progress=False
    )
    assert found.float_metric == pytest.approx(23 / 24)


def test_metrics_by_name(model, q, batches) -> None:
    result = compare(model, q, batches, metric="top5", **torch_only)
    assert result["fp32"].metric >= 100 * 23 / 24
    with pytest.raises(InputError, match=r"metric='bleu' is not among \['top1', 'top5'\]"):
        compare(model, q, batches, metric="bleu", **torch_only)


def test_inputs_chooses_the_arguments(model, q, batches) -> None:
    data = [{"picture": x, "name": "a"} for x, _ in batches]
    with pytest.raises(InputError, match="none of them match"):
        compare(model, q, data, **torch_only)
    result = compare(model, q, data, inputs=lambda batch: batch["picture"], **torch_only)
    assert result.samples == 24


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor, *, scale: float = 1.0) -> dict[str, Tensor]:
        hidden = self.fc(x) * mask
        return {"mean": hidden.mean(1), "scores": hidden * scale}


def test_several_inputs_and_nested_outputs() -> None:
    model = TwoInputs()
    data = [{"x": torch.randn(6, 8), "mask": torch.ones(6, 1), "labels": torch.zeros(6).long()}]
    q = octavo.quantize(model, calibration=data, target=octavo.host_target(), progress=False)
    result = compare(model, q, data, **torch_only)
    with torch.no_grad():
        expected = model(data[0]["x"], data[0]["mask"])["scores"].argmax(1).eq(0)
    assert result["fp32"].metric == pytest.approx(100 * expected.float().mean().item())
    assert result["int8"].sqnr_db > 20


class NoHalf(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is torch.bfloat16:
            raise RuntimeError("no bf16 here")
        return super().forward(x)


class NoCopy(Classifier):
    def __deepcopy__(self, memo: object) -> NoCopy:
        raise TypeError("one of a kind")


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (NoHalf, "RuntimeError: no bf16 here"),
        (NoCopy, "OctavoError: the NoCopy cannot be copied (one of a kind)"),
    ],
)
def test_a_model_without_bf16_is_a_row_with_its_error(kind, error: str, batches) -> None:
    model = kind()
    q = octavo.quantize(model, calibration=batches, target=octavo.host_target(), progress=False)
    result = compare(model, q, batches, **torch_only)
    bf16 = result["bf16"]
    assert bf16.error.startswith(error)
    assert (bf16.latency_ms, bf16.metric) == (None, None)
    assert result["int8"].latency_ms is not None
    assert error.partition(" (")[0] in str(result).replace("\n", " ")


class Overflows(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores * (torch.inf if x.dtype is torch.bfloat16 else 1.0)


def test_bf16_that_is_not_finite_is_a_row_with_its_error(batches) -> None:
    model = Overflows()
    q = octavo.quantize(model, calibration=batches, target=octavo.host_target(), progress=False)
    result = compare(model, q, batches, **torch_only)
    assert result["bf16"].error == "its outputs hold NaN or infinite values"


@pytest.mark.parametrize("data", [[], iter(())])
def test_no_data(model, q, data) -> None:
    with pytest.raises(InputError, match="data is empty"):
        compare(model, q, data, **torch_only)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.full((2, 16), torch.nan), "on batch 1; so do its inputs"),
        (torch.full((2, 16), 3e38), "its inputs are finite: the model makes them"),
        (torch.zeros(0, 16), r"batch 1 is empty \(float32\[0, 16\]\)"),
        (torch.zeros(2, 3), r"fails on batch 1 \(float32\[2, 3\]\): RuntimeError: mat1"),
        (torch.zeros(2, 16).long(), r"fails on batch 1 \(int64\[2, 16\]\)"),
        (7, "a batch is 7"),
    ],
)
def test_batches_that_cannot_be_used(model, q, batches, batch, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare(model, q, [batches[0], batch], **torch_only)


def test_a_model_that_is_not_float32(model, q, batches) -> None:
    with pytest.raises(InputError, match=r"torch\.bfloat16; compare needs the float32 model"):
        compare(model.bfloat16(), q, batches, **torch_only)


def test_a_model_that_is_not_on_the_cpu(model, q, batches) -> None:
    with pytest.raises(InputError, match=r"on meta; compare measures on the CPU"):
        compare(model.to("meta"), q, batches, **torch_only)


def test_two_models_that_do_not_belong_together(q, batches) -> None:
    with pytest.raises(InputError, match="do not belong together"):
        compare(nn.Linear(16, 5), q, batches, **torch_only)


def test_tied_weights_count_once(batches) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(16, 16, bias=False)
            self.b = nn.Linear(16, 16, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    model = Tied()
    q = octavo.quantize(model, calibration=batches, target=octavo.host_target(), progress=False)
    result = compare(model, q, [x for x, _ in batches], **torch_only)
    assert 16 * 16 * 4 < result["fp32"].size_bytes < 16 * 16 * 4 + 300


def test_a_model_of_pixels_beside_floats_that_are_normalized() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    x = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    q = octavo.quantize(
        net, calibration=[x], target=octavo.host_target(), input_mean=0.5, input_std=0.25
    )
    result = compare(net, q, [x], **torch_only)
    assert result.rows[2].sqnr_db > 25
    assert any("normalizes its pixels itself" in note for note in result.notes)
    with pytest.raises(InputError, match="expected uint8"):
        compare(net, q, [x / 255], **torch_only)


class Normalizing(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).mul_(4))


def test_a_model_that_changes_its_inputs_in_place(batches) -> None:
    model, data = Normalizing(), [(x.clone(), labels) for x, labels in batches]
    q = octavo.quantize(model, calibration=data, target=octavo.host_target(), progress=False)
    result = compare(model, q, data, **torch_only)
    assert result["int8"].sqnr_db > 35  # 0.5 on what the float model leaves of its inputs
    assert result["fp32"].metric == pytest.approx(100 * 23 / 24)
    assert all(x.equal(before) for (x, _), (before, _) in zip(data, batches, strict=True))


def test_any_number_of_models(model, q, batches) -> None:
    small = octavo.quantize(model, batches[0][0], mode="weight_only", target=octavo.host_target())
    pruned = Classifier()
    others = {"static": q, "weights": small, "other": pruned}
    result = compare(model, others, batches, runtimes=["torch", "reference"], **torch_only)
    assert [row.name for row in result.rows] == [
        *("fp32", "bf16", "static torch", "static reference", "weights torch", "weights reference"),
        "other",
    ]
    other = result["other"]
    assert (other.runtime, other.size_ratio, other.sqnr_db) == ("eager", 1.0, float("inf"))
    assert other.metric == result["fp32"].metric
    assert pruned.training  # as it was
    assert result["static torch"].size_bytes == result["static reference"].size_bytes
    lines = result.verdict().splitlines()
    assert [line.split(":")[0] for line in lines] == [row.name for row in result.rows[2:]]


def test_models_that_cannot_be_rows(model, q, batches) -> None:
    with pytest.raises(InputError, match="cannot be called 'bf16'"):
        compare(model, {"bf16": q}, batches, **torch_only)
    with pytest.raises(InputError, match="no model to compare with"):
        compare(model, {}, batches, **torch_only)
    with pytest.raises(InputError, match=r"'a' is 'm\.octavo': give models"):
        compare(model, {"a": "m.octavo"}, batches, **torch_only)


@pytest.mark.sweep
def test_load_time_and_memory_are_those_of_new_processes(q, batches) -> None:
    big = nn.Linear(16, 500_000)  # 34 MB, of which int8 weights are 8
    int8 = octavo.quantize(big, batches[0][0], mode="weight_only", target=octavo.host_target())
    inputs = [x for x, _ in batches]
    result = compare(big, {"int8": int8, "other": big}, inputs, cold_starts=True, **torch_only)
    fp32, bf16, rounded, other = result.rows
    assert (other.load_s, other.memory_mb) == (None, None)
    assert all(row.load_s > 0 for row in (fp32, bf16, rounded))
    assert fp32.memory_mb > bf16.memory_mb > 16  # what they hold at least: 34 and 17 MB
    assert "memory MB" in str(result)
