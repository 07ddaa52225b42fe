"""Running a graph as it stands, in float, on a call's own arguments; and graphs of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from octavo.graph.calls import build_output, flatten_call
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.operators import name_of
from octavo.graph.program import compile_steps, steps_of


def run_graph(graph: Graph, *args: Any, **kwargs: Any) -> Any:
    """What the captured model returns."""
    inputs = [given.name for given in graph.inputs]
    run = compile_steps(inputs, steps_of(graph), graph.output_names(), graph.constants)
    with torch.no_grad():
        return build_output(graph, run(*flatten_call(graph, args, kwargs)))


def graph_of(function: Callable[..., Tensor], *args: Tensor) -> Graph:
    """A graph of some operators, without a module: far sooner than `octavo.capture`."""
    traced = make_fx(function, pre_dispatch=True)(*args).graph
    inputs, nodes, constants = [], [], {}
    outputs: object = ()
    for node in traced.nodes:
        if node.op == "placeholder":
            inputs.append(Input(node.name, TensorMeta.of(node.meta["val"])))
        elif node.op == "get_attr":
            constants[node.name] = getattr(traced.owning_module, node.target)
        elif node.op == "output":
            outputs = torch.fx.node.map_arg(node.args[0], lambda n: Ref(n.name))
        else:
            args_, kwargs = torch.fx.node.map_arg(
                (node.args, dict(node.kwargs)), lambda n: Ref(n.name)
            )
            plain = (tuple(list(a) if isinstance(a, tuple | list) else a for a in args_), kwargs)
            meta = TensorMeta.of(node.meta["val"])
            nodes.append(Node(node.name, name_of(node.target), *plain, meta=meta))
    arguments = {item.name: Ref(item.name) for item in inputs}
    return Graph(tuple(inputs), constants, tuple(nodes), arguments, outputs)
