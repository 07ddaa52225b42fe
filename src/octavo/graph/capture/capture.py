"""From an ``nn.Module`` to a `Graph`, by ``torch.export`` (non-strict, open sizes).

The user's model is left as it was: its training flags are restored, and the graph's constants are
references to its parameters until a later stage makes tensors of its own.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from octavo.arguments import optional
from octavo.errors import CaptureError, InputError, OctavoWarning
from octavo.graph import operators
from octavo.graph.calls import flatten_call
from octavo.graph.capture.example import arguments_of, check_example, module_of, signature_of
from octavo.graph.capture.fidelity import Faithful
from octavo.graph.capture.fixed_values import fixed_values
from octavo.graph.capture.ones import repeated
from octavo.graph.capture.sizes_open import MayBeOpen, is_any, with_sizes_open
from octavo.graph.capture.torch_export import EXPORTING, export, is_users, refuse_state
from octavo.graph.capture.uncallable import refuse_uncallable
from octavo.graph.capture.values_read import reads_values_alone
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.open_sizes import OPEN_SIZES, OpenSizes
from octavo.graph.passes import canonical
from octavo.graph.passes.functionalize import make_functional
from octavo.graph.records import record_of, without_caches
from octavo.graph.size_guards import Guard
from octavo.progress import waiting

# Checks that export inserts. Those of inputs' sizes are kept as guards; those of dtypes and of
# sizes that forward computes are what the operators ask for; the user's own are told of.
_ASSERTIONS = re.compile(r"^(aten\.(_assert|sym_constrain|_check)|_check|_assert)")

# Kernels of models that are quantized, by Octavo or by torch.ao.
_OF_INTEGERS = ("onednn.", "quantized.")


def capture(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    open_sizes: OpenSizes | None = None,
    progress: bool = True,
) -> Graph:
    """Capture a model in evaluation mode as a canonical graph, for inputs of all sizes that the
    model takes.

    Dropout is gone and batch normalization is folded into the layers before it, see
    `octavo.graph.passes`. Sizes are open where the model leaves them so: the batch, the length of
    texts, height and width of images. A size that the model depends on is part of the graph, and
    the error for an input of another size names the line.

    Args:
        model: any module that ``torch.export`` takes; it is not changed.
        example_inputs: a tensor or a tuple of positional arguments. Sizes of one are repeated where
            the model takes more, since export would take 1 for a constant.
        example_kwargs: keyword arguments.
        open_sizes: the sizes that have to be open, by input and axis, with a name for each:
            ``{"input_ids": {1: "length"}}``. Others, but for the batch, are then fixed, so that
            ``{}`` leaves the batch open alone. Without it all are open that the model leaves open.
        progress: a clock on a terminal, where it takes over two seconds.

    Raises:
        CaptureError: the model cannot be exported; the message names the line and the way out.
        InputError: the example does not fit the signature of ``forward``, or the model fixes a size
            that has to be open.

    Example:
        >>> graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.rand(1, 3, 8, 8))
        >>> [node.name for node in graph.nodes]
        ['0', '1']
        >>> print(graph.inputs[0])
        float32[N, 3, input_2, input_3]
    """
    return traced(model, example_inputs, example_kwargs, canonical, open_sizes, progress)


def _unchanged(graph: Graph) -> Graph:
    return graph


def traced(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
    form: Callable[[Graph], Graph] = _unchanged,
    open_sizes: OpenSizes | None = None,
    progress: bool = True,
) -> Graph:
    """The model as a graph of a certain form, compared with the model.

    Without one it is what `capture` starts from: the graph as the model computes it, free of
    in-place operators.

    Raises:
        CaptureError, InputError: as `capture`.
    """
    model = module_of(model)
    optional(OPEN_SIZES, open_sizes=open_sizes)
    args, kwargs = without_caches((arguments_of(example_inputs), dict(example_kwargs or {})))
    check_example(args, kwargs)
    with waiting("capturing the model", progress):
        try:
            return _captured(model, args, kwargs, form, open_sizes)
        except CaptureError as error:
            _, _, stopped = str(error).partition("torch.export ")
            refuse_uncallable(model, args, kwargs, stopped.partition(". Check that")[0])
            raise


def _captured(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    form: Callable[[Graph], Graph],
    open_sizes: OpenSizes | None,
) -> Graph:
    names = tuple(bind_arguments(model, args, kwargs))

    def graph_for(
        args: tuple[Any, ...], kwargs: dict[str, Any], may_be_open: MayBeOpen = is_any
    ) -> Graph:
        return _faithful(model, args, kwargs, names, form, may_be_open)

    def may_help(error: CaptureError) -> bool:
        """Whether there may be a graph with fewer sizes open."""
        if error.cause == "values":
            return not reads_values_alone(model, args, kwargs)
        return error.cause != "code"

    for many_args, many_kwargs in repeated(model, args, kwargs):
        graph = with_sizes_open(graph_for, many_args, many_kwargs, open_sizes, may_help)
        if _takes(graph, args, kwargs):
            return graph
    # The model does something of its own with one sample, and one was given.
    alone = with_sizes_open(graph_for, args, kwargs, open_sizes, may_help)
    own = (_of_one(entry) for entry in alone.inputs if entry.meta.shape[:1] == (1,))
    return replace(alone, guards=(*alone.guards, *own))


def _faithful(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: tuple[str, ...],
    form: Callable[[Graph], Graph],
    may_be_open: MayBeOpen,
) -> Graph:
    with EXPORTING:
        exported = export(model, args, kwargs, may_be_open)
        graph = form(_graph_of(exported.program, names))
        graph = replace(graph, guards=exported.sizes.guards)
        faithful = Faithful(graph, model, args, kwargs, _written(exported.program))
        same = faithful.check()
        if same:
            faithful.refuse_memory()
        settled = faithful.settled(exported.sizes.doubtful)
        if same:
            faithful.check_elsewhere(settled)
        _tell_of_checks(exported.program, model)
        return settled


def _takes(graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        flatten_call(graph, args, kwargs)
    except InputError:
        return False
    return True


def _of_one(entry: Input) -> Guard:
    why = "forward treats a single sample differently, and it was captured with one"
    return Guard(("==", ("size", entry.name, 0), 1), why)


def bind_arguments(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The call's arguments by the names that ``forward`` gives them.

    Raises:
        InputError: they do not fit the signature.
    """
    own = inspect.signature(model.forward)
    signature = next((s for s in (signature_of(model), own) if _takes_call(s, args, kwargs)), own)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise InputError(_misfit(model, signature, args, kwargs, error)) from None
    named: dict[str, Any] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {f"{name}_{i}": item for i, item in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named


def _misfit(
    model: nn.Module,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    error: TypeError,
) -> str:
    """Why a call does not fit a model's ``forward``, and how to give batches or arguments."""
    given = f"{len(args)} argument{'s' if len(args) != 1 else ''} by place"
    given += f" and {', '.join(sorted(map(str, kwargs)))} by name" if kwargs else ""
    are_batches = len(args) > 1 and all(isinstance(arg, Tensor | list | tuple) for arg in args)
    way_out = (
        "if these are batches of data, give them by their keyword, calibration=batches"
        if are_batches
        else "give a tuple of its arguments, or a dict of them by name"
    )
    return (
        f"{type(model).__name__}.forward{signature} cannot be called with {given}: {error}; "
        f"{way_out}"
    )


def _takes_call(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _graph_of(program: ExportedProgram, argument_names: tuple[str, ...]) -> Graph:
    signature = program.graph_signature
    returned = [s for s in signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    # What forward changed in place has been read as changed. The caller's input stays, and whether
    # a parameter may is asked when graph and model are compared.
    changes = (OutputKind.USER_INPUT_MUTATION, OutputKind.PARAMETER_MUTATION)
    allowed = (OutputKind.USER_OUTPUT, *changes)
    refuse_state([str(s.target) for s in signature.output_specs if s.kind not in allowed])
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    names: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    inputs: list[Input] = []
    leaves: list[Any] = []
    tensors = dict(program.state_dict) | dict(program.constants)
    for spec, placeholder in zip(signature.input_specs, placeholders, strict=True):
        if spec.kind is not InputKind.USER_INPUT:
            names[placeholder.name] = str(spec.target)
            constants[str(spec.target)] = tensors[spec.target].detach()
        elif isinstance(spec.arg, ConstantArgument):
            leaves.append(spec.arg.value)
        else:
            meta = _meta_of(placeholder)
            if meta is None:
                raise CaptureError(f"the input {placeholder.name!r} is not a tensor")
            names[placeholder.name] = placeholder.name
            inputs.append(Input(placeholder.name, meta, _example_of(placeholder)))
            leaves.append(Ref(placeholder.name))
    tensors = {n: constants[names[n]] for n in names if names[n] in constants}
    computed = fixed_values(program.graph, tensors, _is_allowed)
    constants |= _named(computed, program.graph, names)
    nodes = _nodes_of(program.graph, names, set(computed))
    positional, keyword = _tree(program.call_spec.in_spec, iter(leaves))
    trees = dict(zip(argument_names, positional, strict=False)) | keyword
    results = (
        s.arg.value if isinstance(s.arg, ConstantArgument) else Ref(names[s.arg.name])
        for s in returned
    )
    outputs = _tree(program.call_spec.out_spec, results)
    arguments = {name: trees[name] for name in argument_names}
    graph = Graph(tuple(inputs), constants, tuple(nodes), arguments, outputs)
    return make_functional(graph).pruned()


def _written(program: ExportedProgram) -> list[str]:
    """The parameters that forward changes."""
    specs = program.graph_signature.output_specs
    return [str(s.target) for s in specs if s.kind is OutputKind.PARAMETER_MUTATION]


def _tree(spec: Any, leaves: Iterator[Any]) -> Any:
    """A structure of dict, Record, list and (named) tuple from a pytree spec and its leaves."""
    if spec.is_leaf():
        return next(leaves)
    children = [_tree(child, leaves) for child in spec.children()]
    if spec.type in (list, tuple):
        return spec.type(children)
    if spec.type is type(None):
        return None
    if spec.type is namedtuple:
        return spec.context(*children)
    if isinstance(spec.type, type) and issubclass(spec.type, tuple):  # what torch.max returns
        return spec.type(children)
    if spec.type is defaultdict:
        return dict(zip(spec.context[1], children, strict=True))
    if spec.type in (dict, OrderedDict):
        return spec.type(zip(spec.context, children, strict=True))
    record = record_of(spec.type, spec.context, children)
    if record is None:
        raise CaptureError(
            f"the model takes or returns a {getattr(spec.type, '__name__', spec.type)}; use dicts, "
            "lists and tuples of tensors"
        )
    return record


def _meta_of(node: torch.fx.Node) -> TensorMeta | None:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        shape = tuple(map(_fixed, value.shape))
        return TensorMeta(shape, str(value.dtype).removeprefix("torch."))
    return None


def _fixed(size: int | torch.SymInt) -> int | None:
    """A size, ``None`` if it is open: export may have fixed one that was."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def _example_of(node: torch.fx.Node) -> tuple[int, ...]:
    """The shape that an input had during export."""
    sizes = node.meta["val"].shape
    return tuple(size if isinstance(size, int) else size.node.hint for size in sizes)


def _named(
    computed: Mapping[str, Any], graph: torch.fx.Graph, names: dict[str, str]
) -> dict[str, Tensor]:
    """Computed tensors under names as nodes have, which ``names`` learns."""
    taken, named = set(names.values()), {}
    for node in graph.nodes:
        if isinstance(computed.get(node.name), Tensor):
            kind = operators.name_of(node.target).split(".")[1]
            names[node.name] = _unique(f"{_call_of(node)[1]}.{kind}".lstrip("."), taken)
            named[names[node.name]] = computed[node.name].clone()
    return named


def _nodes_of(graph: torch.fx.Graph, names: dict[str, str], without: set[str]) -> list[Node]:
    """Nodes named after the module that made them; ``names`` learns every fx node's new name."""
    calls = [
        node
        for node in graph.nodes
        if node.op == "call_function" and not _is_assertion(node) and node.name not in without
    ]
    per_call = Counter(_call_of(node)[0] for node in calls)
    containers = {_call_of(node)[1] for node in calls}
    containers = {path for path in containers for other in containers if _is_inside(other, path)}
    taken = set(names.values())
    nodes = []
    for node in calls:
        key, module, module_type = _call_of(node)
        op = operators.name_of(node.target)
        _check_allowed(op, node, module)
        kind = op.split(".")[1].rstrip("_")
        alone = module and module not in containers and per_call[key] == 1
        name = module if alone else f"{module}.{kind}".lstrip(".")
        names[node.name] = _unique(name, taken)
        args, kwargs = _plain((node.args, node.kwargs), names)
        nodes.append(Node(names[node.name], op, args, kwargs, _meta_of(node), module, module_type))
    return nodes


def _is_inside(path: str, container: str) -> bool:
    return path != container and path.startswith(f"{container}." if container else "")


def _is_assertion(node: torch.fx.Node) -> bool:
    return bool(_ASSERTIONS.match(operators.name_of(node.target)))


def _tell_of_checks(program: ExportedProgram, model: nn.Module) -> None:
    """Warn of checks on values that the user wrote: a graph does not make them."""
    for node in program.graph.nodes:
        if node.op == "call_function" and _is_on_values(node):
            warnings.warn(
                f"{type(model).__name__} checks values{_line_of(node)}, which its graph does not: "
                "inputs that would fail there are computed all the same; check them before the "
                "call",
                OctavoWarning,
                stacklevel=5,
            )


def _is_on_values(node: torch.fx.Node) -> bool:
    name = operators.name_of(node.target)
    if name.startswith("aten._assert_async"):
        return True
    condition = node.args[0] if name.startswith("aten._assert_scalar") else None
    value = condition.meta.get("val") if isinstance(condition, torch.fx.Node) else None
    if not isinstance(value, torch.SymBool):
        return False
    expression = value.node.expr
    is_bound = type(expression).__name__ in ("LessThan", "StrictLessThan", "StrictGreaterThan")
    return is_bound and any(str(symbol).startswith("u") for symbol in expression.free_symbols)


def _check_allowed(op: str, node: torch.fx.Node, module: str) -> None:
    where = f"module {module or 'the model itself'!r}{_line_of(node)}"
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise CaptureError(
            f"{where} uses {op}, a branch or a loop on tensor values, which int8 runtimes cannot "
            "run; replace it by torch.where",
            "code",
        )
    if op.startswith(_OF_INTEGERS):
        raise CaptureError(
            f"{where} calls {op}: it is quantized already; start from the float model", "code"
        )
    if _is_allowed(node):
        return
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise CaptureError(
            f"{where} calls {op}, which draws random numbers: each call gives another result, so "
            "that none can be compared with the model's; make the noise an argument of forward, "
            "or leave it out in evaluation (if self.training)",
            "code",
        )
    raise CaptureError(
        f"{where} calls {op}, which is not among the operators that Octavo runs; rewrite that "
        "part with other operators, or quantize the submodules around it"
    )


def _is_allowed(node: torch.fx.Node) -> bool:
    """Whether a graph may have the operator, or what it is without writing in place."""
    op = operators.name_of(node.target)
    try:
        operators.resolve(re.sub(r"(?<=[a-z0-9])_(?=\.)", "", op, count=1))
    except CaptureError:
        return False
    return True


def _line_of(node: torch.fx.Node) -> str:
    """Where the user's code called an operator."""
    lines = re.findall(r'File "(.+)", line (\d+)', node.meta.get("stack_trace") or "")
    users = [(file, line) for file, line in lines if is_users(file)]
    return f" ({users[-1][0]}:{users[-1][1]})" if users else ""


def _call_of(node: torch.fx.Node) -> tuple[str, str, str]:
    """Key of the module call that made a node, the module's path, and its type's name."""
    stack = list(node.meta.get("nn_module_stack", {}).items())
    if not stack or stack[-1][0].startswith("_empty"):
        return "", "", ""
    key, (path, kind) = stack[-1]
    path = re.sub(r"@\d+", "", path).removeprefix("L['self']").lstrip(".")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return key, path, kind


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


def _plain(arg: Any, names: Mapping[str, str]) -> Any:
    """fx's arguments as a graph's: nodes become `Ref`, immutable lists and dicts plain ones."""
    if isinstance(arg, torch.fx.Node):
        return Ref(names[arg.name])
    if isinstance(arg, dict):
        return {key: _plain(value, names) for key, value in arg.items()}
    if isinstance(arg, list):
        return [_plain(item, names) for item in arg]
    if isinstance(arg, tuple):
        return tuple(_plain(item, names) for item in arg)
    return arg
