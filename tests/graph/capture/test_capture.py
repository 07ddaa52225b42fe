"""From a module to a graph that returns what the module does, on any batch size."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from running import run_graph
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torchvision.models import mobilenetv3

import octavo
from octavo.errors import CaptureError, InputError, PlanError
from octavo.graph.capture.capture import capture
from octavo.graph.capture.torch_export import as_records
from octavo.graph.graph import Graph
from octavo.graph.records import Record
from octavo.graph.soundness.soundness import check as check_sound


class Calls(nn.Module):
    """Layers, and a function in place of ``forward``."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def leaves(tree: Any) -> list[Any]:
    return pytree.tree_leaves(tree)


def check(model: nn.Module, graph: Graph, *args: Any, **kwargs: Any) -> Any:
    """The graph returns what the model does; what that is."""
    model.eval()
    with torch.no_grad():
        expected = as_records(model(*args, **kwargs))
    found = run_graph(graph, *args, **kwargs)
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        else:
            assert one == other
    check_sound(graph)  # what is captured can be loaded again
    return found


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def row(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4)


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1)


def settled(model: nn.Module) -> nn.Module:
    """Batch norms with statistics as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return model


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, Graph]:
    model = settled(torchvision.models.resnet18())
    return model, capture(model, torch.randn(1, 3, 64, 64))


def test_resnet18(resnet: tuple[nn.Module, Graph]) -> None:
    model, graph = resnet
    for batch in (1, 3):
        check(model, graph, torch.randn(batch, 3, 64, 64))
    ops = [node.short_op for node in graph.nodes]
    counts = {op: ops.count(op) for op in set(ops)}
    assert counts == {
        "conv2d": 20,
        "relu": 17,
        "add": 8,
        "max_pool2d": 1,
        "adaptive_avg_pool2d": 1,
        "flatten": 1,
        "linear": 1,
    }


def test_names_are_the_users_own(resnet: tuple[nn.Module, Graph]) -> None:
    model, graph = resnet
    names = [node.name for node in graph.nodes]
    assert names[:9] == [
        "conv1",
        "relu",
        "maxpool",
        "layer1.0.conv1",
        "layer1.0.relu",
        "layer1.0.conv2",
        "layer1.0.add",
        "layer1.0.relu_1",
        "layer1.1.conv1",
    ]
    assert names[-3:] == ["avgpool", "flatten", "fc"]
    assert len(set(names)) == len(names)
    modules = dict(model.named_modules())
    for node in graph.nodes:
        kind = type(modules[node.module])
        assert node.module_type == f"{kind.__module__}.{kind.__qualname__}"
    weights = {name for name in graph.constants if name.endswith(".weight")}
    assert weights <= set(model.state_dict())
    assert [given.name for given in graph.inputs] == ["x"]


def test_names_do_not_depend_on_the_example(resnet: tuple[nn.Module, Graph]) -> None:
    model, graph = resnet
    again = capture(model, torch.randn(5, 3, 64, 64))
    assert [node.name for node in again.nodes] == [node.name for node in graph.nodes]
    assert list(again.constants) == list(graph.constants)
    assert again.inputs[0].meta == graph.inputs[0].meta
    assert again.inputs[0].meta.shape == (None, 3, None, None)
    assert again.inputs[0].example == (5, 3, 64, 64)


def test_the_first_blocks_of_mobilenet_v3_small() -> None:
    blocks, _ = mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small")
    model = settled(mobilenetv3.MobileNetV3(blocks[:4], 64))
    graph = capture(model, torch.randn(2, 3, 64, 64))
    for batch in (1, 3):
        check(model, graph, torch.randn(batch, 3, 64, 64))
    ops = {node.short_op for node in graph.nodes}
    assert not ops & {"batch_norm", "dropout"}
    assert {"hardswish", "hardsigmoid", "mul", "adaptive_avg_pool2d"} <= ops
    assert graph.node("features.1.block.1.fc1").module_type == "torch.nn.modules.conv.Conv2d"
    assert not [name for name in graph.metas if name.endswith("_")]


# Arguments


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, a: Tensor, b: Tensor, c: Tensor | None = None, *, k: float = 2.0) -> Tensor:
        y = self.fc(a) - k * b
        return y if c is None else y * c


ARGUMENTS = [
    ((row(), row()), {}, ["a", "b"]),
    ((row(), row(), row()), {}, ["a", "b", "c"]),
    ((), {"a": row(), "b": row()}, ["a", "b"]),
    ((), {"b": row(), "a": row()}, ["a", "b"]),  # not in the order of the signature
    ((row(),), {"c": row(), "b": row()}, ["a", "b", "c"]),
    ((row(), row(), None), {"k": 0.5}, ["a", "b", "c", "k"]),
]


@pytest.mark.parametrize(("args", "kwargs", "names"), ARGUMENTS)
def test_several_inputs_positional_and_by_keyword(
    args: tuple, kwargs: Mapping[str, Any], names: list[str]
) -> None:
    model = Two()
    graph = capture(model, args, kwargs)
    assert list(graph.arguments) == names
    check(model, graph, *args, **kwargs)
    other = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    other = {name: row(5) if isinstance(v, Tensor) else v for name, v in other.items()}
    check(model, graph, **other)
    check(model, graph, **dict(reversed(other.items())))


class Variadic(nn.Module):
    def forward(self, *xs: Tensor, scale: Tensor) -> Tensor:
        return xs[0] * scale - xs[1]


def test_any_number_of_arguments() -> None:
    graph = capture(Variadic(), (row(), row()), {"scale": row()})
    assert list(graph.arguments) == ["xs_0", "xs_1", "scale"]
    args = {"xs_0": row(5), "xs_1": row(5), "scale": row(5)}
    expected = args["xs_0"] * args["scale"] - args["xs_1"]
    assert torch.allclose(run_graph(graph, **args), expected)


Point = namedtuple("Point", "x y")


@dataclass
class State:
    hidden: Tensor
    cell: Tensor | None = None


pytree.register_dataclass(State)

NESTED = {
    "list and tuple": (lambda b: [row(b), (row(b), row(b))], lambda t: t[0] * t[1][0] - t[1][1]),
    "dict": (lambda b: {"p": row(b), "q": [row(b)]}, lambda t: t["p"] - t["q"][0]),
    "numbered dict": (lambda b: {0: row(b), 1: row(b)}, lambda t: t[0] - t[1]),
    "named tuple": (lambda b: Point(row(b), row(b)), lambda t: t.x - t.y),
    "dataclass": (lambda b: State(row(b)), lambda t: t.hidden * 2),
    "one tensor twice": (lambda b: [row(b)] * 2, lambda t: t[0] * t[1]),
}


@pytest.mark.parametrize(("make", "function"), NESTED.values(), ids=NESTED)
def test_nested_arguments(make: Callable[[int], Any], function: Callable[[Any], Tensor]) -> None:
    model = Calls(lambda m, tree: m.fc(function(tree)), fc=nn.Linear(4, 4))
    graph = capture(model, (make(2),))
    for batch in (2, 5):
        check(model, graph, make(batch))


def test_tensors_without_a_batch_keep_their_shape() -> None:
    model = Calls(lambda m, x: m.fc(x[0]) * x[1] + x[2], fc=nn.Linear(4, 4))
    graph = capture(model, ((row(3), torch.tensor(2.0), torch.randn(3, 4)),))
    shapes = [given.meta.shape for given in graph.inputs]
    assert shapes == [(None, 4), (), (None, 4)]
    check(model, graph, (row(5), torch.tensor(-1.0), row(5)))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x]])
def test_one_argument_alone_or_in_a_tuple(wrap: Callable[[Tensor], Any]) -> None:
    model = Calls(lambda m, x: m.fc(x), fc=nn.Linear(4, 4))
    check(model, capture(model, wrap(row())), row(3))


def test_an_example_of_one_stands_for_any_batch() -> None:
    model = Calls(lambda m, x: m.conv(x).flatten(1), conv=conv())
    example = image(1)
    graph = capture(model, example)
    assert graph.inputs[0].meta.shape == (None, 3, None, None)
    assert example.shape == (1, 3, 8, 8)
    for batch in (1, 2, 7):
        check(model, graph, image(batch))


# Results


class ModelOutput(OrderedDict):
    """An output object as transformers returns them."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]


pytree.register_pytree_node(
    ModelOutput,
    lambda output: (list(output.values()), list(output)),
    lambda values, names: ModelOutput(zip(names, values, strict=True)),
    serialized_type_name="tests.ModelOutput",
)


class Memory:
    """A result of a type that pytree does not know, as the caches of language models are."""

    def __init__(self, keys: Tensor, owner: Any = None) -> None:
        self.dtype = keys.dtype
        self.layers = [Memory(keys * 2, self)] if owner is None else []
        self.keys = keys
        self.owner = owner


OUTPUTS: dict[str, tuple[Callable[..., Any], Any]] = {
    "dict": (lambda m, x: {"y": m.conv(x), "deep": {"x": x}}, dict),
    "list": (lambda m, x: [m.conv(x), (x, [m.conv(x).relu()])], list),
    "tuple": (lambda m, x: (m.conv(x), None, x), tuple),
    "named tuple": (lambda m, x: Point(m.conv(x), (x,)), tuple),
    "numbered dict": (lambda m, x: {0: m.conv(x), 1: x}, dict),
    "ordered dict": (lambda m, x: OrderedDict(b=m.conv(x), a=x), OrderedDict),
    "default dict": (lambda m, x: defaultdict(list, b=m.conv(x), a=x), dict),
    "dataclass": (lambda m, x: State(m.conv(x), x), State),
    "dataclass in part": (lambda m, x: State(m.conv(x)), State),
    "what max returns": (lambda m, x: (m.conv(x).max(1), x), tuple),
    "output object": (lambda m, x: ModelOutput(logits=m.conv(x), hidden=(x,)), Record),
    "unknown object": (lambda m, x: Memory(m.conv(x)), Record),
    "unknown object in part": (lambda m, x: {"y": [Memory(m.conv(x))]}, dict),
    "constants": (lambda m, x: (m.conv(x), 3, "text", 0.5, True, None), tuple),
    "parameter and buffer": (lambda m, x: (m.conv(x), m.conv.weight, m.bias), tuple),
    "sizes": (lambda m, x: (m.conv(x), x.shape[0], x.shape), tuple),
    "one tensor twice": (lambda m, x: [m.conv(x)] * 2, list),
    "the input itself": (lambda m, x: x, Tensor),
    "nothing": (lambda m, x: None, type(None)),
}


@pytest.mark.parametrize(("function", "kind"), OUTPUTS.values(), ids=OUTPUTS)
def test_results_have_the_models_structure(function: Callable[..., Any], kind: type) -> None:
    model = Calls(function, conv=conv(), bias=torch.ones(3))
    graph = capture(model, image())
    for batch in (2, 5):
        assert isinstance(check(model, graph, image(batch)), kind)


def test_fields_of_results_are_attributes() -> None:
    x = image()
    for kind, field in (("output object", "logits"), ("dataclass", "hidden")):
        model = Calls(OUTPUTS[kind][0], conv=conv())
        result = run_graph(capture(model, x), x)
        torch.testing.assert_close(getattr(result, field), model.conv(x).detach())
    memory = run_graph(capture(Calls(OUTPUTS["unknown object"][0], conv=conv()), x), x)
    assert list(memory) == ["layers", "keys"]
    torch.testing.assert_close(memory.layers[0]["keys"], memory["keys"] * 2)
    model = Calls(OUTPUTS["named tuple"][0], conv=conv())
    point = run_graph(capture(model, x), x)
    assert point.y[0] is x
    first, _ = point
    assert first is point.x


# What forward does


def batch_norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(3)


def attend(m: nn.Module, x: Tensor) -> Tensor:
    return m.layer(x.flatten(2).transpose(1, 2))


def no_grad_inside(m: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.conv(x)
    return m.conv(y.relu())


def grad_inside(m: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y, z = m.conv(x).chunk(2, -1)
        with torch.no_grad():
            y = y * 2
    return m.conv(y + z)


def autocast_off_inside(m: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False), torch.enable_grad():
        y = m.conv(x.float()).relu_()
    return m.conv(y)


def autocast_off_to_the_end(m: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return m.conv(x.float()).relu()


def written_inside(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    part = y[:, :1]
    with torch.enable_grad():
        y.relu_()
    return y + part  # which has changed too


def regions_of_two_kinds(m: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = m.conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        x = x * m.conv(x)
    with torch.autocast("cpu", enabled=False):
        return x.relu()


def masks(m: nn.Module, x: Tensor) -> Tensor:
    mask = (x > 0) & (x < 1) | ~(x < 2) ^ (x > 3)
    return torch.where(mask, m.conv(x).reshape_as(x), 0.0)


def stacked_constants(m: nn.Module, x: Tensor) -> Tensor:
    scale = torch.tensor([0.5, 2.0, 1.0])[:, None, None]
    return m.conv(x) * scale + torch.arange(x.shape[-1]) + torch.zeros(x.shape[0], 1, 1, 1)


layer = conv()
BODIES: dict[str, nn.Module] = {
    "a module called twice": Calls(lambda m, x: m.conv(m.conv(x).relu()), conv=conv()),
    "a module in two places": nn.Sequential(layer, nn.ReLU(), layer),
    "functional relu": Calls(lambda m, x: F.relu(m.conv(x)) + m.conv(x).relu(), conv=conv()),
    "no_grad": Calls(no_grad_inside, conv=conv()),
    "no_grad around": Calls(torch.no_grad()(lambda m, x: m.conv(x)), conv=conv()),
    "gradients": Calls(grad_inside, conv=conv()),
    "autocast that is off": Calls(autocast_off_inside, conv=conv()),
    "autocast that is off to the end": Calls(autocast_off_to_the_end, conv=conv()),
    "written in a region": Calls(written_inside, conv=conv()),
    "regions of two kinds": Calls(regions_of_two_kinds, conv=conv()),
    "masks": Calls(masks, conv=conv()),
    "weight normalization": nn.Sequential(nn.utils.parametrizations.weight_norm(conv())),
    "one norm of a weight": nn.Sequential(nn.utils.parametrizations.weight_norm(conv(), dim=None)),
    "inference mode": Calls(torch.inference_mode()(lambda m, x: m.conv(x)), conv=conv()),
    "constants": Calls(stacked_constants, conv=conv()),
    "shapes": Calls(lambda m, x: m.conv(x).view(x.shape[0], -1, 4), conv=conv()),
    "halved batch": Calls(lambda m, x: m.conv(x).view(x.shape[0] // 2, -1), conv=conv()),
    "interpolation": Calls(lambda m, x: F.interpolate(m.conv(x), scale_factor=2.0), conv=conv()),
    "padding in words": nn.Sequential(nn.Conv2d(3, 3, 3, padding="same"), nn.Conv2d(3, 3, 2)),
    "lstm": Calls(lambda m, x: m.lstm(x[:, 0])[0], lstm=nn.LSTM(8, 5, batch_first=True)),
    "gru": Calls(lambda m, x: m.gru(x[:, 0])[0], gru=nn.GRU(8, 5, batch_first=True)),
    "attention": Calls(attend, layer=nn.TransformerEncoderLayer(3, 1, 8, batch_first=True)),
    "embedding": Calls(lambda m, x: m.table((x[:, 0, 0] > 0).long()), table=nn.Embedding(2, 3)),
}


@pytest.mark.parametrize("model", BODIES.values(), ids=BODIES)
def test_the_graph_computes_what_forward_does(model: nn.Module) -> None:
    graph = capture(model, image(4))
    for batch in (2, 6):
        check(model, graph, image(batch))


def autocasting(m: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        return m.conv(x.relu()).softmax(1)


def test_autocast_becomes_casts() -> None:
    """In bfloat16 layers, and back to float32 where torch asks for it."""
    model = Calls(autocasting, conv=conv())
    graph = capture(model, image())
    check(model, graph, image(5))
    (layer,) = [node for node in graph.nodes if node.short_op == "conv2d"]
    assert layer.meta.dtype == "bfloat16"
    assert graph.constants[layer.args[1].name].dtype == torch.bfloat16  # cast once, in the graph


def test_regions_keep_the_names_of_modules() -> None:
    graph = capture(nn.Sequential(Calls(grad_inside, conv=conv())), image())
    names = [node.name for node in graph.nodes if node.short_op == "conv2d"]
    assert names == ["0.conv", "0.conv_1"]


def test_a_module_that_is_used_twice_has_two_names_and_one_weight() -> None:
    graph = capture(BODIES["a module called twice"], image())
    assert [node.name for node in graph.nodes] == ["conv", "relu", "conv_1"]
    assert list(graph.constants) == ["conv.weight", "conv.bias"]
    placed = capture(BODIES["a module in two places"], image())
    assert [node.name for node in placed.nodes] == ["0", "1", "2"]
    assert len(placed.constants) == 2


def test_operators_inside_a_module_are_named_after_it() -> None:
    block = Calls(lambda m, x: F.relu(m.conv(x) + x) * 2, conv=conv())
    graph = capture(nn.Sequential(block, block), image())
    assert [node.name for node in graph.nodes] == [
        "0.conv",
        "0.add",
        "0.relu",
        "0.mul",
        "1.conv",
        "1.add",
        "1.relu",
        "1.mul",
    ]
    assert {node.module for node in graph.nodes} == {"0.conv", "0", "1.conv", "1"}


def test_dropout_goes_in_all_its_forms() -> None:
    forms = [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()]
    model = nn.Sequential(conv(), *forms, nn.Dropout(inplace=True))
    model.append(Calls(lambda m, x: F.dropout(x, 0.5, m.training)))
    graph = capture(model, image())
    assert [node.name for node in graph.nodes] == ["0"]


def test_dropout_that_is_always_on_stays() -> None:
    """Monte Carlo dropout is part of what the model does in evaluation mode."""
    model = Calls(lambda m, x: F.dropout(m.conv(x), 0.5, training=True), conv=conv())
    graph = capture(model, image())
    assert [node.short_op for node in graph.nodes] == ["conv2d", "dropout"]
    zeros = (run_graph(graph, image(64)) == 0).double().mean()
    assert 0.4 < zeros < 0.6


# The user's model


def untouched(model: nn.Module, act: Callable[[], object]) -> None:
    """``act`` leaves no trace on the model."""

    def attributes(module: nn.Module) -> dict[str, Any]:
        # Containers by their content, all else by identity.
        values = vars(module).items()
        return {k: list(v) if isinstance(v, list | dict) else id(v) for k, v in values}

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    gradients = [(p.requires_grad, p.grad) for p in model.parameters()]
    modules = [(name, id(module), attributes(module)) for name, module in model.named_modules()]
    act()
    assert [(n, id(m), attributes(m)) for n, m in model.named_modules()] == modules
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == gradients
    assert {n: t.data_ptr() for n, t in model.state_dict().items()} == pointers
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Untidy(nn.Module):
    """Stores what it sees, as a forward may."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(), batch_norm(), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.frozen = nn.Linear(8, 2).requires_grad_(False)
        self.features: list[Tensor] = []
        self.cache: dict[str, Tensor] = {}
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.body(x)
        self.features.append(self.last)
        self.cache["x"] = x
        return self.frozen(self.last)


@pytest.fixture
def untidy() -> Untidy:
    model = Untidy()
    model.train()
    model.body[1].eval()
    model.frozen.eval()
    model.body[0].register_forward_hook(lambda module, args, output: output * 1.0)
    model.register_forward_pre_hook(lambda module, args: None)
    return model


def test_the_users_model_is_left_as_it_was(untidy: Untidy) -> None:
    untouched(untidy, lambda: capture(untidy, image()))
    modes = [untidy.training, untidy.body.training, untidy.body[1].training, untidy.frozen.training]
    assert modes == [True, True, False, False]
    assert untidy(image()).requires_grad


def test_so_it_is_when_capture_fails(untidy: Untidy) -> None:
    def fail() -> None:
        with pytest.raises(CaptureError):
            capture(untidy, torch.randn(2, 7, 8, 8))

    untouched(untidy, fail)


class Fills(nn.Module):
    """Changes a buffer in place, which no graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.layer(x)


@pytest.mark.parametrize("batch", [1, 3])
def test_buffers_have_their_values_again(batch: int) -> None:
    model = Fills()

    def fail() -> None:
        with pytest.raises(CaptureError, match="forward changes 'calls'"):
            capture(model, torch.randn(batch, 4))

    untouched(model, fail)


def test_a_tensor_of_the_model_is_not_changed_through_the_graph() -> None:
    model = nn.Sequential(conv(), nn.ReLU(inplace=True))
    before = copy.deepcopy(model.state_dict())
    x = image()
    given = x.clone()
    run_graph(capture(model, x), x)
    assert torch.equal(x, given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Errors


def branching(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    if y.sum() > 0:
        return y
    return -y


BRANCH = inspect.getsourcelines(branching)[1] + 2


def test_a_branch_on_values_names_the_module_and_the_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = nn.Sequential(conv(), Calls(branching, conv=conv()))
    with pytest.raises(CaptureError) as caught:
        capture(model, image())
    message = str(caught.value)
    assert f"{__file__}:{BRANCH} (branching) in module '1'" in message
    assert "move such a branch out of forward, or replace it by torch.where" in message
    assert "\n" not in message
    assert capfd.readouterr().err == ""


class Counting(nn.Module):
    def __init__(self, function: Callable[[Counting], None]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.function(self)
        return x + self.calls


def assigned(m: Counting) -> None:
    m.calls = m.calls + 1


@pytest.mark.parametrize("function", [lambda m: m.calls.add_(1), assigned])
def test_a_buffer_that_changes_in_evaluation_is_an_error(
    function: Callable[[Counting], None],
) -> None:
    model = nn.Sequential(Counting(function))
    with pytest.raises(CaptureError, match=r"forward changes '0\.calls' in evaluation mode"):
        capture(model, row())
    assert model[0].calls == 0


class Decomposing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svd(x)[0]


UNSUPPORTED = {
    "operator": (Decomposing(), r"module '0' \(.*test_capture\.py:\d+\) calls aten\.linalg_svd"),
    "values as sizes": (Calls(lambda m, x: x.nonzero()), r"'0'.* calls aten\.nonzero"),
    "number from a tensor": (Calls(lambda m, x: x * x.max().item()), r"'0'.* calls aten\.item"),
    "loop on values": (
        Calls(lambda m, x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))),
        r"uses cond, a branch or a loop on tensor values.*torch\.where",
    ),
}


@pytest.mark.parametrize(("model", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_octavo_does_not_run_names_the_module(model: nn.Module, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(nn.Sequential(model), row())


EXAMPLES = [
    ((), {}, "missing a required argument: 'a'"),
    ((row(),), {}, "missing a required argument: 'b'"),
    ((row(),) * 4, {}, "too many positional arguments"),
    ((row(), row()), {"d": row()}, "got an unexpected keyword argument 'd'"),
    ((row(), row()), {"a": row()}, "multiple values for argument 'a'"),
]


@pytest.mark.parametrize(("args", "kwargs", "message"), EXAMPLES)
def test_an_example_that_does_not_fit_the_signature(
    args: tuple, kwargs: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        capture(Two(), args, kwargs)
    assert "Two.forward(a:" in str(caught.value)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            torch.randn(2, 5, 8, 8),
            r"in module 'conv': RuntimeError: Given groups=1.*Check that ",
        ),
        (torch.randn(2, 3, 8, 8).double(), "in module 'conv': RuntimeError"),
        ("image.png", "in module"),
        (None, "in module"),
    ],
)
def test_an_example_that_the_model_cannot_run(example: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Calls(lambda m, x: m.conv(x), conv=conv()), (example,))


def test_an_error_in_forward_is_told_with_its_line() -> None:
    model = Calls(lambda m, x: m.conv(x) / m.nothing, conv=conv())
    with pytest.raises(CaptureError, match=r"test_capture\.py:\d+ .*AttributeError.*nothing"):
        capture(model, image())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_model_cannot_be_captured() -> None:
    scripted = torch.jit.script(nn.Sequential(conv()))
    with pytest.raises(CaptureError, match=r"compiled TorchScript.*start from the nn.Module"):
        capture(scripted, image())


def test_a_quantized_model_is_not_quantized_again() -> None:
    x = image()
    target = octavo.host_target()
    q = octavo.quantize(nn.Sequential(conv()), calibration=[x], target=target, progress=False)
    with pytest.raises(CaptureError, match=r"quantized already: .* start from the float model"):
        capture(nn.Sequential(q, nn.ReLU()), x)
    with pytest.raises(PlanError, match="quantized already: start from the float model"):
        octavo.quantize(q, calibration=[x])


def test_a_spectral_norm_is_computed_once() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))).eval()
    graph = capture(model, torch.randn(2, 8))
    assert [node.short_op for node in graph.nodes] == ["linear"]
