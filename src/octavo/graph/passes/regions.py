"""Regions such as ``with torch.no_grad():`` become part of the program around them.

torch.export keeps each as a call of a program of its own. In a graph that only computes, gradients
are off anyway, and so is an autocast that was written to be off.

Tested in tests/graph/capture/test_capture.py.
"""

from __future__ import annotations

import operator

import torch
from torch.export import ExportedProgram
from torch.fx import Node

_GRADIENTS = "wrap_with_set_grad_enabled"
_AUTOCAST = "wrap_with_autocast"


def inline_regions(program: ExportedProgram) -> bool:
    """Inline what can be as it stands; whether that is all.

    What remains is autocast to another dtype: its casts show when torch.export decomposes it.
    """
    graph = program.graph
    while regions := [node for node in graph.nodes if _is_plain_region(node)]:
        for region in regions:
            _inline(program, region)
    program.graph_module.recompile()
    return not any(_name(node) == _AUTOCAST for node in graph.nodes)


def _name(node: Node) -> str:
    is_region = isinstance(node.target, torch._ops.HigherOrderOperator)
    return str(node.target) if is_region else ""


def _is_plain_region(node: Node) -> bool:
    # The arguments of autocast are its device, dtype, whether it is on, and whether it caches.
    return _name(node) == _GRADIENTS or (_name(node) == _AUTOCAST and node.args[2] is False)


def _inline(program: ExportedProgram, region: Node) -> None:
    module, graph = program.graph_module, program.graph
    place = next(i for i, arg in enumerate(region.args) if _is_submodule(arg))
    submodule = region.args[place]
    assert isinstance(submodule, Node)
    body = module.get_submodule(str(submodule.target))
    assert isinstance(body, torch.fx.GraphModule)
    placeholders = body.graph.find_nodes(op="placeholder")
    copies = dict(zip(placeholders, region.args[place + 1 :], strict=True))
    with graph.inserting_before(region):
        results = graph.graph_copy(body.graph, copies)
    for user in list(region.users):
        assert user.target is operator.getitem
        result = results[user.args[1]]
        user.replace_all_uses_with(result)
        program.graph_signature.replace_all_uses(user.name, result.name)
        graph.erase_node(user)
    graph.erase_node(region)
    if not submodule.users:
        graph.erase_node(submodule)


def _is_submodule(arg: object) -> bool:
    return isinstance(arg, Node) and arg.op == "get_attr"
