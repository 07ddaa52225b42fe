"""Objects of another kind, given to every public function: one `OctavoError` each, no other."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.arguments import COUNT, PATH, described, expect
from octavo.compat import quantization as torch_ao
from octavo.errors import InputError


@functools.cache
def things() -> SimpleNamespace:
    """What the right objects are."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    x = torch.rand(8, 16)
    graph = octavo.capture(net, x)
    plan = octavo.plan(graph)
    found = octavo.calibrate(graph, plan, [x], progress=False)
    q = octavo.convert(graph, plan, found.qparams)
    compared = octavo.compare(net, q, [x], rounds=1, progress=False)
    return SimpleNamespace(
        net=net, x=x, graph=graph, plan=plan, found=found, q=q, compared=compared,
        labelled=[(x, net(x).argmax(1))],
    )  # fmt: skip


@functools.cache
def wrong() -> dict[str, Any]:
    """What people give instead."""
    t = things()
    return {
        "None": None,
        "a text": "abc",
        "a path": Path("none.octavo"),
        "bytes": b"x",
        "an int": -3,
        "nan": float("nan"),
        "a list": [1, 2],
        "a list of None": [None],
        "an empty list": [],
        "a dict": {"a": 1},
        "a tensor": t.x,
        "a function": len,
        "a class": nn.Linear,
        "the class": octavo.QuantizedModel,
        "a float model": t.net,
        "a model in training": octavo.prepare_qat(t.net, t.x),
        "a quantized model": t.q,
        "a model of compat": torch_ao.quantize_dynamic(t.net),
        "a state dict": t.net.state_dict(),
        "a graph": t.graph,
        "a plan": t.plan,
    }


# Argument -> a call with it, and which of the wrong objects are none there.
Case = tuple[Callable[[Any], Any], str]
QUIET: dict[str, Any] = {"progress": False}
NO = "None"


def cases() -> dict[str, Case]:
    t = things()
    o, x, q, net, graph, plan = octavo, [t.x], t.q, t.net, t.graph, t.plan
    quick = {"rounds": 1, **QUIET}
    reported = {"comparison": t.compared, **QUIET}
    sought: dict[str, Any] = {"max_drop": 100.0, **QUIET}
    spec = o.QSpec(o.Scheme("int8"), o.MinMax())
    text = torch.arange(8)

    def guess(ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, 8)

    return {
        "layer_errors(model": (lambda v: o.layer_errors(v, q, x, **QUIET), "a float model"),
        "layer_errors(q": (
            lambda v: o.layer_errors(net, v, x, **QUIET),
            "a quantized model, a model of compat",
        ),
        "layer_errors(data": (lambda v: o.layer_errors(net, q, v, **QUIET), ""),
        "layer_errors(inputs": (
            lambda v: o.layer_errors(net, q, x, inputs=v, **QUIET),
            "None, a function, a class, the class, a float model, a model in training, "
            "a quantized model, a model of compat",
        ),
        "layer_errors(runtime": (lambda v: o.layer_errors(net, q, x, runtime=v, **QUIET), NO),
        "distributions(model": (lambda v: o.distributions(v, q, x, **QUIET), "a float model"),
        "distributions(q": (
            lambda v: o.distributions(net, v, x, **QUIET),
            "a quantized model, a model of compat",
        ),
        "distributions(data": (lambda v: o.distributions(net, q, v, **QUIET), ""),
        "report(model": (lambda v: o.report(v, q, x, **reported), "a float model"),
        "report(q": (
            lambda v: o.report(net, v, x, **reported),
            "a quantized model, a model of compat",
        ),
        "report(data": (lambda v: o.report(net, q, v, **reported), ""),
        "report(comparison": (
            lambda v: (
                o.report(net, q, x, comparison=v, **QUIET) if v is not None else expect_none()
            ),
            "",
        ),
        "report(sensitivity": (lambda v: o.report(net, q, x, sensitivity=v, **reported), NO),
        "report(search": (lambda v: o.report(net, q, x, search=v, **reported), NO),
        "report(batches": (lambda v: o.report(net, q, x, batches=v, **reported), NO),
        "report(title": (lambda v: o.report(net, q, x, title=v, **reported), "a text"),
        "multiple_choice(questions": (lambda v: o.multiple_choice(guess, v), ""),
        "quantize_folder(path": (lambda v: o.quantize_folder(v, "nowhere", **QUIET), ""),
        "quantize_folder(out": (lambda v: o.quantize_folder("nowhere", v, **QUIET), ""),
        "read_checkpoint(path": (lambda v: o.read_checkpoint(v), ""),
        "write_checkpoint(model": (lambda v: o.write_checkpoint(v, "nowhere", "gptq"), ""),
        "write_checkpoint(path": (lambda v: o.write_checkpoint(net, v, "gptq"), ""),
        "write_checkpoint(format": (lambda v: o.write_checkpoint(net, "nowhere", v), ""),
        "perplexity(tokens": (lambda v: o.perplexity(guess, v), ""),
        "perplexity(window": (lambda v: o.perplexity(guess, text, window=v), ""),
        "perplexity(stride": (lambda v: o.perplexity(guess, text, stride=v), NO),
        "compare(model": (lambda v: o.compare(v, q, x, **quick), "a float model"),
        "compare(q": (
            lambda v: o.compare(net, v, x, **quick),
            "a quantized model, a model of compat",
        ),
        "compare(data": (lambda v: o.compare(net, q, v, **quick), ""),
        "compare(metric": (
            lambda v: o.compare(net, q, t.labelled, metric=v, **quick),
            "None, a function, a class, the class, a float model, a model in training, "
            "a quantized model, a model of compat",
        ),
        "compare(runtimes": (
            lambda v: o.compare(net, q, x, runtimes=v, **quick),
            "None, an empty list",
        ),
        "compare(threads": (lambda v: o.compare(net, q, x, threads=v, **quick), NO),
        "compare(rounds": (lambda v: o.compare(net, q, x, rounds=v, **QUIET), NO),
        "bench(path": (lambda v: o.bench(v, **QUIET), ""),
        "bench(batches": (lambda v: o.bench("m.octavo", batches=v, **QUIET), ""),
        "bench(runtimes": (lambda v: o.bench("m.octavo", runtimes=v, **QUIET), ""),
        "bench(threads": (lambda v: o.bench("m.octavo", threads=v, **QUIET), ""),
        "bench(seconds": (lambda v: o.bench("m.octavo", seconds=v, **QUIET), ""),
        "verify(q": (lambda v: o.verify(v, runtimes=["torch"]), "a quantized model"),
        "verify(data": (lambda v: o.verify(q, v, runtimes=["torch"]), NO),
        "verify(runtimes": (lambda v: o.verify(q, runtimes=v), "None, an empty list"),
        "verify(threshold": (lambda v: o.verify(q, runtimes=["torch"], threshold=v), NO),
        "export_onnx(q": (lambda v: o.export_onnx(v, "a.onnx"), "a quantized model"),
        "export_onnx(path": (lambda v: o.export_onnx(q, v), "a text, a path"),
        "export_onnx(runtime": (lambda v: o.export_onnx(q, "a.onnx", runtime=v), ""),
        "export_tflite(q": (lambda v: o.export_tflite(v, "a.tflite"), "a quantized model"),
        "export_tflite(path": (lambda v: o.export_tflite(q, v), "a text, a path"),
        "export_executorch(q": (lambda v: o.export_executorch(v, "a.pte"), "a quantized model"),
        "export_executorch(path": (lambda v: o.export_executorch(q, v), "a text, a path"),
        "export_executorch(batch": (lambda v: o.export_executorch(q, "a.pte", batch=v), NO),
        "export_package(q": (lambda v: o.export_package(v, "a.pt2"), "a quantized model"),
        "export_package(path": (lambda v: o.export_package(q, v), ""),
        "load_package(path": (lambda v: o.load_package(v), ""),
        "load(path": (lambda v: o.load(v), ""),
        "load(runtime": (lambda v: o.load("m.octavo", v), NO),
        "summary(q": (lambda v: o.summary(v), "a quantized model, a model of compat"),
        "save(path": (lambda v: q.save(v), "a text, a path"),
        "lower(runtime": (lambda v: q.lower(v), ""),
        "lower(threads": (lambda v: q.lower("openvino", threads=v), NO),
        "lower(batch": (lambda v: q.lower("openvino", batch=v), NO),
        "lower(cache": (lambda v: q.lower("openvino", cache=v), "None, a text, a path"),
        "lower(budget": (lambda v: q.lower("torch", tune=True, budget=v), NO),
        "plan(graph": (lambda v: o.plan(v), "a graph"),
        "plan(mapping": (lambda v: o.plan(graph, v), NO),
        "plan(target": (lambda v: o.plan(graph, target=v), ""),
        "plan(mode": (lambda v: o.plan(graph, mode=v), ""),
        "calibrate(graph": (lambda v: o.calibrate(v, plan, x, **QUIET), "a graph"),
        "calibrate(plan": (lambda v: o.calibrate(graph, v, x, **QUIET), "a plan"),
        "calibrate(data": (lambda v: o.calibrate(graph, plan, v, **QUIET), ""),
        "calibrate(signature": (lambda v: o.calibrate(graph, plan, x, signature=v, **QUIET), NO),
        "Calibration(graph": (lambda v: o.Calibration(v, plan), "a graph"),
        "Calibration(plan": (lambda v: o.Calibration(graph, v), "a plan"),
        "correct_biases(graph": (lambda v: o.correct_biases(v, t.found.qparams, {}), "a graph"),
        "correct_biases(qparams": (
            lambda v: o.correct_biases(graph, v, t.found.input_means),
            "a dict, a state dict",
        ),
        "correct_biases(means": (
            lambda v: o.correct_biases(graph, t.found.qparams, v),
            "a dict, a state dict",
        ),
        "convert(source": (lambda v: o.convert(v), "a model in training"),
        "convert(graph": (lambda v: o.convert(v, plan, t.found.qparams), "a graph"),
        "convert(plan": (lambda v: o.convert(graph, v, t.found.qparams), "a plan"),
        "convert(qparams": (lambda v: o.convert(graph, plan, v), ""),
        "convert(signature": (
            lambda v: o.convert(graph, plan, t.found.qparams, signature=v),
            NO,
        ),
        "convert(pixels": (lambda v: o.convert(graph, plan, t.found.qparams, pixels=v), NO),
        "search(model": (lambda v: o.search(v, calibration=[], **sought), ""),
        "search(calibration": (lambda v: o.search(net, calibration=v, **sought), ""),
        "search(data": (lambda v: o.search(net, t.x, data=v, **sought), ""),
        "search(max_drop": (lambda v: o.search(net, calibration=[], max_drop=v, **QUIET), ""),
        "search(evaluate": (lambda v: o.search(net, calibration=[], evaluate=v, **sought), ""),
        "search(train": (lambda v: o.search(net, calibration=[], train=v, **sought), ""),
        "search(time_budget": (
            lambda v: o.search(net, calibration=[], time_budget=v, **sought),
            "",
        ),
        "search(checkpoint": (lambda v: o.search(net, calibration=[], checkpoint=v, **sought), ""),
        "search(target": (lambda v: o.search(net, calibration=[], target=v, **sought), ""),
        "search(engine": (lambda v: o.search(net, calibration=[], engine=v, **sought), ""),
        "search(objective": (lambda v: o.search(net, calibration=[], objective=v, **sought), ""),
        "sensitivity(model": (lambda v: o.sensitivity(v, t.x, data=[], **QUIET), ""),
        "sensitivity(data": (lambda v: o.sensitivity(net, t.x, data=v, **QUIET), ""),
        "sensitivity(calibration": (
            lambda v: o.sensitivity(net, t.x, data=[], calibration=v, **QUIET),
            "",
        ),
        "sensitivity(mode": (lambda v: o.sensitivity(net, t.x, data=[], mode=v, **QUIET), ""),
        "sensitivity(qconfig": (lambda v: o.sensitivity(net, t.x, data=[], qconfig=v, **QUIET), ""),
        "sensitivity(target": (lambda v: o.sensitivity(net, t.x, data=[], target=v, **QUIET), ""),
        "static_qconfig(target": (lambda v: o.static_qconfig(v), ""),
        "static_qconfig(observer": (lambda v: o.static_qconfig(observer=v), NO),
        "static_qconfig(weight_bits": (lambda v: o.static_qconfig(weight_bits=v), ""),
        "dynamic_qconfig(target": (lambda v: o.dynamic_qconfig(v), ""),
        "qat_qconfig(target": (lambda v: o.qat_qconfig(v), ""),
        "qat_qconfig(weight_bits": (lambda v: o.qat_qconfig(weight_bits=v), ""),
        "weight_only_qconfig(bits": (lambda v: o.weight_only_qconfig(v), ""),
        "weight_only_qconfig(group": (lambda v: o.weight_only_qconfig(4, group_size=v), NO),
        "Scheme(dtype": (lambda v: o.Scheme(v), ""),
        "Scheme(channel_axis": (lambda v: o.Scheme("int8", channel_axis=v), "None, an int"),
        "QSpec(scheme": (lambda v: o.QSpec(v), ""),
        "QSpec(observer": (lambda v: o.QSpec(o.Scheme("int8"), v), NO),
        "QConfig(activation": (lambda v: o.QConfig(v, spec), NO),
        "QConfig(weight": (lambda v: o.QConfig(None, v), ""),
        "set_global(qconfig": (lambda v: o.QConfigMapping().set_global(v), NO),
        "set_module_name(name": (lambda v: o.QConfigMapping().set_module_name(v, None), "a text"),
        "set_module_name(qconfig": (lambda v: o.QConfigMapping().set_module_name("0", v), NO),
        "set_module_name_regex(pattern": (
            lambda v: o.QConfigMapping().set_module_name_regex(v, None),
            "a text",
        ),
        "set_object_type(kind": (
            lambda v: o.QConfigMapping().set_object_type(v, None),
            "a text, a function, a class, the class",
        ),
        "FixedRange(low": (lambda v: o.FixedRange(v, 1.0), "an int"),
        "Percentile(percentile": (lambda v: o.Percentile(v), ""),
        "MovingAverageMinMax(constant": (lambda v: o.MovingAverageMinMax(v), ""),
        "Plan.from_json(text": (lambda v: o.Plan.from_json(v), ""),
        "SearchResult.read(path": (lambda v: o.SearchResult.read(v), ""),
        "QuantizedModel(graph": (lambda v: o.QuantizedModel(v, plan, q.signature, {}), "a graph"),
        "QuantizedModel(plan": (lambda v: o.QuantizedModel(graph, v, q.signature, {}), "a plan"),
        "plots.layer_errors(errors": (lambda v: o.plots.layer_errors(v), ""),
        "plots.comparison(result": (lambda v: o.plots.comparison(v), ""),
        "plots.search(result": (lambda v: o.plots.search(v), ""),
        "plots.sensitivity(found": (lambda v: o.plots.sensitivity(v), ""),
        "plots.distribution(seen": (lambda v: o.plots.distribution(v), ""),
        "q(x": (lambda v: q(v), "a tensor"),
    }


def expect_none() -> None:
    raise InputError("None is allowed here")


def outcome(call: Callable[[Any], Any], value: Any) -> str:
    """What a call ends in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(value)
        except octavo.OctavoError as error:
            clear = str(error) and "has no attribute" not in str(error)
            return "a clear error" if clear else f"an unclear error: {error}"
        except Exception as error:  # noqa: BLE001  this is what must not be
            return f"{type(error).__name__}: {error}"
    return "it is taken"


@pytest.mark.parametrize("argument", cases())
def test_wrong_objects_are_one_clear_error(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, right = cases()[argument]
    values = {name: value for name, value in wrong().items() if name not in right.split(", ")}
    outcomes = {name: outcome(call, value) for name, value in values.items()}
    assert outcomes == dict.fromkeys(values, "a clear error")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("argument", "thing", "message"),
    [
        ("verify(q", "a path", "octavo.load('none.octavo')"),
        ("export_onnx(q", "a float model", "octavo.quantize makes one from a float model"),
        ("export_onnx(q", "a model in training", "octavo.convert makes one from a model"),
        ("compare(model", "a quantized model", "give the float model that was quantized"),
        ("compare(model", "a model of compat", "give the float model that was quantized"),
        ("layer_errors(model", "a model in training", "the model that octavo.prepare_qat was"),
        ("layer_errors(model", "a state dict", "build the network and load_state_dict it"),
        ("layer_errors(model", "a class", "give a model, Linear(...), not its class"),
        (
            "bench(path",
            "a quantized model",
            "path is a QuantizedModel: give the path of a file; q.",
        ),
        ("lower(threads", "a text", "threads is 'abc': give a whole number of 1 or more"),
        ("verify(runtimes", "a text", "runtimes is 'abc': give a list of names"),
        (
            "set_module_name(name",
            "a float model",
            "name is a Sequential: give the path of the module",
        ),
        ("compare(data", "a tensor", "a list such as [images]"),
        ("plan(mapping", "a text", "give an octavo.QConfigMapping"),
    ],
)
def test_the_message_names_the_way_out(argument: str, thing: str, message: str) -> None:
    with pytest.raises(octavo.OctavoError) as caught:
        cases()[argument][0](wrong()[thing])
    assert message in str(caught.value)


def test_every_public_function_stands_in_the_table() -> None:
    own = {
        "capture",
        "quantize",
        "prepare_qat",
    }  # tests/graph/capture/test_capture.py, test_quantize.py, qat/
    functions = {
        name
        for name in octavo.__all__
        if callable(getattr(octavo, name)) and not isinstance(getattr(octavo, name), type)
    }
    tested = {argument.partition("(")[0] for argument in cases()}
    assert functions - tested - own - {"host_target"} == set()


def test_what_a_value_is_called() -> None:
    values = [None, 3, "x", int, [], (), {}]
    words = ["None", "3", "'x'", "the class int", "a list", "a tuple", "a dict"]
    assert [described(value) for value in values] == words
    with pytest.raises(InputError, match="threads is True: give a whole number of 1 or more"):
        expect(COUNT, threads=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", ["trace", "script"])
def test_torchscript_is_no_model_to_begin_with(compiled: str) -> None:
    t = things()
    model = torch.jit.trace(t.net, t.x) if compiled == "trace" else torch.jit.script(t.net)
    batches: list[Any] = [t.x]
    calls: list[Callable[[], Any]] = [
        lambda: octavo.capture(model, t.x),
        lambda: octavo.quantize(model, t.x),
        lambda: octavo.prepare_qat(model, t.x),
        lambda: octavo.compare(model, t.q, batches),
        lambda: octavo.layer_errors(model, t.q, batches),
        lambda: octavo.search(model, calibration=batches, max_drop=1),
        lambda: octavo.sensitivity(model, t.x, data=batches),
    ]
    for call in calls:
        with pytest.raises(octavo.OctavoError, match=r"the nn\.Module that it was made from"):
            call()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~/m.octavo", r"~ is a folder like any other: os\.path\.expanduser"),
        (Path("~/m.octavo"), r"os\.path\.expanduser"),
        ("a\0b.octavo", "null character"),
    ],
)
def test_paths_that_name_another_file_or_none(path: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        expect(PATH, path=path)
    expect(PATH, path="~m.octavo")
