"""What newcomers write in their first hour, and that each message says what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import octavo
from octavo.errors import CallError, OctavoWarning

X = torch.rand(8, 16, generator=torch.Generator().manual_seed(0))
IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 4


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


class Pairs(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": X[index], "label": LABELS[index]}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.layer(left) + self.layer(right)  # type: ignore[no-any-return]


class Either(nn.Module):
    """Wants one of several arguments, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, ids: Tensor, x: Tensor | None = None, embeds: Tensor | None = None) -> Tensor:
        if x is None and embeds is None:
            raise ValueError("You have to specify either x or embeds")
        return self.layer(embeds if x is None else x)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Makes what its decoder reads of labels, as T5 does."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 4)

    def forward(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        if labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        return self.table(input_ids) + self.read(decoder_input_ids)  # type: ignore[no-any-return]

    def read(self, input_ids: Tensor | None) -> Tensor:
        if input_ids is None:
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        return self.table(input_ids)  # type: ignore[no-any-return]

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        return labels.roll(1, -1)


class LightningModule(nn.Module):
    """Stands in for Lightning's, which is known by its name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def quantize(*args: Any, **kwargs: Any) -> Any:
    return octavo.quantize(*args, progress=False, **kwargs)


def calibrated(*args: Any, **kwargs: Any) -> Any:
    return quantize(net(), *args, calibration=[X], **kwargs)


# What is written -> what the message says to write.
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a loader by place": (
        lambda: quantize(net(), DataLoader(TensorDataset(X), 4)),
        "give it by its keyword, calibration=loader",
    ),
    "batches by place": (lambda: quantize(net(), [X, X]), "by their keyword, calibration=batches"),
    "a third argument": (
        lambda: quantize(net(), X, DataLoader(TensorDataset(X), 4)),
        "give a DataLoader by its keyword, one of calibration=",
    ),
    "nothing to run on": (lambda: quantize(net()), "pass calibration=loader, some batches"),
    "no model": (lambda: quantize(), "octavo.quantize needs model: octavo.quantize(model)"),
    "a state dict": (lambda: quantize(net().state_dict(), X), "model.load_state_dict(...)"),
    "a checkpoint": (
        lambda: quantize({"state_dict": net().state_dict(), "epoch": 3}, X),
        "give it checkpoint['state_dict']",
    ),
    "a path": (
        lambda: quantize("net.pth", X),
        "model.load_state_dict(torch.load('net.pth'))",
    ),
    "an ONNX file": (
        lambda: quantize("net.onnx", X),
        "give the model that this file was exported from",
    ),
    "a generator that was read before": (
        lambda: quantize(net(), calibration=iter([])),
        "a generator that was read before has none left",
    ),
    "a scripted model": (
        lambda: quantize(torch.jit.script(net()), X),
        "start from the nn.Module that it was made from",
    ),
    "a quantized file": (lambda: quantize("m.octavo", X), "octavo.load('m.octavo') gives it"),
    "a class": (lambda: quantize(nn.Linear, X), "give a model, Linear(...), not its class"),
    "no forward": (
        lambda: quantize(LightningModule(net()), calibration=[X]),
        "give the network inside of it, model.inner",
    ),
    "an array": (lambda: quantize(net(), X.numpy()), "torch.from_numpy(array)"),
    "arrays": (
        lambda: quantize(net(), calibration=[X.numpy()]),
        "[torch.from_numpy(array) for array in arrays]",
    ),
    "an array for batches": (
        lambda: quantize(net(), calibration=X.numpy()),
        "a list of batches, [torch.from_numpy(array)]",
    ),
    "a dataset": (
        lambda: quantize(net(), calibration=TensorDataset(X)),
        "torch.utils.data.DataLoader(dataset, batch_size=32)",
    ),
    "a folder": (lambda: quantize(net(), calibration="data/"), "calibration is 'data/': give an"),
    "dicts": (
        lambda: quantize(net(), calibration=DataLoader(Pairs(), 4)),
        "inputs=lambda batch: batch['image']",
    ),
    "dicts for two": (
        lambda: quantize(Two(), calibration=[{"a": X, "b": X, "label": LABELS}]),
        "inputs=lambda batch: (batch['a'], batch['b'])",
    ),
    "integers": (lambda: quantize(net(), calibration=[(X * 9).long()]), "give x.float()"),
    "halves": (lambda: quantize(net(), calibration=[X.half()]), "give x.float()"),
    "a model in halves": (lambda: quantize(net().half(), X), "give model.float()"),
    "a lazy model": (
        lambda: quantize(nn.Sequential(nn.Linear(16, 8), nn.LazyLinear(4)), calibration=[X]),
        "'1.weight' has no sizes yet: lazy modules of torch.nn find them at their first call",
    ),
    "pixels": (
        lambda: quantize(convolutions(), calibration=[(IMAGES * 255).byte()]),
        "input_scale=1 / 255",
    ),
    "channels last": (
        lambda: quantize(convolutions(), calibration=[IMAGES.permute(0, 2, 3, 1)]),
        "give x.permute(0, 3, 1, 2)",
    ),
    "one image": (lambda: quantize(convolutions(), calibration=[IMAGES[0]]), "give x[None]"),
    "another size": (
        lambda: quantize(net(), calibration=[X[:, 1:]]),
        "Sequential cannot be called with float32[8, 15]",
    ),
    "mode int8": (lambda: calibrated(mode="int8"), "int8 comes of itself"),
    "mode weight-only": (lambda: calibrated(mode="weight-only"), "did you mean 'weight_only'?"),
    "target cpu": (lambda: calibrated(target="cpu"), "leave target= out"),
    "target cuda": (lambda: calibrated(target="cuda"), "Octavo's kernels are for CPUs"),
    "target fbgemm": (lambda: calibrated(target="fbgemm"), "write 'x86'"),
    "target x87": (lambda: calibrated(target="x87"), "did you mean 'x86'?"),
    "qconfig int8": (lambda: calibrated(qconfig="int8"), "qconfig is 'int8': give a QConfig"),
    "qconfig not called": (
        lambda: calibrated(qconfig=octavo.weight_only_qconfig),
        "call it, octavo.weight_only_qconfig()",
    ),
    "a group that fits nothing": (
        lambda: quantize(net(), X, qconfig=octavo.weight_only_qconfig(4, group_size=33)),
        "Give a group_size that divides",
    ),
    "one method": (lambda: calibrated(weights=octavo.GPTQ()), "[octavo.GPTQ()]"),
    "a method's name": (lambda: calibrated(weights="gptq"), "[octavo.GPTQ()]"),
    "a method's class": (lambda: calibrated(weights=[octavo.GPTQ]), "[octavo.GPTQ()]"),
    "effort max": (lambda: calibrated(effort="max"), "effort is 'max'; give one of 'fast'"),
    "a keyword misspelled": (
        lambda: quantize(net(), calibratoin=[X]),
        "no argument 'calibratoin': did you mean calibration=?",
    ),
    "data=": (lambda: quantize(net(), data=[X]), "data goes to calibration="),
    "bits=": (lambda: quantize(net(), X, bits=4), "qconfig=octavo.weight_only_qconfig(4"),
    "runtime=": (lambda: quantize(net(), X, runtime="openvino"), "q.lower(runtime)"),
    "an unknown keyword": (lambda: octavo.load("m.octavo", zzz=1), "it takes path, runtime, into"),
    "compare without data": (
        lambda: octavo.compare(net(), net()),  # type: ignore[call-arg]
        "octavo.compare needs data: octavo.compare(model, q, data)",
    ),
    "layer_errors without q": (
        lambda: octavo.layer_errors(net(), [X]),  # type: ignore[call-arg]
        "octavo.layer_errors needs data: octavo.layer_errors(model, q, data)",
    ),
    "distributions without q": (
        lambda: octavo.distributions(net(), [X]),  # type: ignore[call-arg]
        "octavo.distributions needs data: octavo.distributions(model, q, data)",
    ),
    "search without a budget": (
        lambda: octavo.search(net(), data=[X]),  # type: ignore[call-arg]
        "octavo.search needs max_drop: octavo.search(model, max_drop=...)",
    ),
    "either of two arguments": (lambda: quantize(Either(), {"ids": X}), "needs x or embeds too:"),
    "inputs made of labels": (
        lambda: quantize(
            Decoder(), calibration=[{"input_ids": LABELS[None], "labels": LABELS[None]}]
        ),
        "not given to it: inputs=lambda batch: {'input_ids': batch['input_ids'], "
        "'decoder_input_ids': model.prepare_decoder_input_ids_from_labels(batch['labels'])}",
    ),
    "a rule for a class's name": (
        lambda: quantize(
            net(), X, qconfig=octavo.QConfigMapping().set_module_name("layer", None)
        ),
        "no module is called 'layer'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("mistake", "way_out"), MISTAKES.values(), ids=MISTAKES)
def test_the_message_says_what_to_write(mistake: Callable[[], Any], way_out: str) -> None:
    with pytest.raises(octavo.OctavoError) as caught:
        mistake()
    assert way_out in str(caught.value)


@pytest.fixture(scope="module")
def q() -> octavo.QuantizedModel:
    return calibrated()  # type: ignore[no-any-return]


CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an array": (lambda q: q(X.numpy()), "torch.from_numpy(input)"),
    "a batch of a loader": (lambda q: q([X]), "q(*batch)"),
    "one sample": (lambda q: q(X[0]), "it has no batch axis: give input[None]"),
    "doubles": (lambda q: q(X.double()), "give input.float()"),
    "onnx": (lambda q: q.lower("ort"), "write 'onnxruntime'"),
    "a misspelled runtime": (lambda q: q.lower("openvno"), "did you mean 'openvino'?"),
    "arguments swapped": (lambda q: octavo.export_onnx("m.onnx", q), "the model comes first"),
}


@pytest.mark.parametrize(("mistake", "way_out"), CALLS.values(), ids=CALLS)
def test_the_message_of_a_call(
    mistake: Callable[[Any], Any], way_out: str, q: octavo.QuantizedModel
) -> None:
    with pytest.raises(octavo.OctavoError) as caught:
        mistake(q)
    assert way_out in str(caught.value)


def test_a_wrong_call_is_a_type_error_too() -> None:
    with pytest.raises(TypeError, match="did you mean calibration"):
        quantize(net(), calibratoin=[X])
    assert issubclass(CallError, octavo.OctavoError)


def test_files_of_nearly_this_name_and_of_torch_save(
    tmp_path: Path, q: octavo.QuantizedModel
) -> None:
    q.save(tmp_path / "digits.octavo")
    with pytest.raises(octavo.OctavoError, match=r"did you mean '.*digits\.octavo'"):
        octavo.load(tmp_path / "digit.octavo")
    torch.save(net().state_dict(), tmp_path / "net.pth")
    with pytest.raises(octavo.OctavoError, match=r"load_state_dict\(torch.load\(path\)\)"):
        octavo.load(tmp_path / "net.pth")


@pytest.mark.own_target
def test_without_a_target_it_is_this_cpu() -> None:
    assert calibrated().target == octavo.host_target()
    assert calibrated(target=None).target == octavo.host_target()
    assert calibrated(target="x86-avx2").target == "x86-avx2"


def test_a_lightning_module_is_converted_to_the_network_inside() -> None:
    holder = LightningModule(octavo.prepare_qat(net(), X))
    holder.inner(X).sum().backward()
    with pytest.warns(OctavoWarning, match="what the LightningModule holds as 'inner'"):
        converted = octavo.convert(holder.eval())
    torch.testing.assert_close(converted(X), octavo.convert(holder.inner)(X), rtol=0, atol=0)


def test_a_typo_in_a_rule_names_the_class_that_is_there() -> None:
    rules = octavo.QConfigMapping().set_object_type("Linaer", None)
    with pytest.warns(OctavoWarning, match=r"given the class itself, torch\.nn\.Linear"):
        calibrated(qconfig=rules)
