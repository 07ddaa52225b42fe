"""Running ``torch.export`` on a user's model: quietly, with errors that say where it stopped, and
without a trace on the model.

Tested in tests/graph/capture/test_capture.py.
"""

from __future__ import annotations

import builtins
import inspect
import operator
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.nn.modules.module import register_module_buffer_registration_hook
from torch.utils import _pytree as pytree

from octavo.errors import CaptureError
from octavo.graph.capture.changes import undone
from octavo.graph.capture.example import PACKED
from octavo.graph.capture.padded_tokens import zero_padded_tokens
from octavo.graph.capture.parameter_data import DataIsTheTensor
from octavo.graph.capture.recurrent_layers import WholeRecurrentLayers, recall
from octavo.graph.capture.specialization import NotedGuards, Specialized, Symbols, specialized
from octavo.graph.evaluation import evaluating
from octavo.graph.passes.functionalize import is_safe
from octavo.graph.passes.regions import inline_regions
from octavo.graph.quiet import quiet
from octavo.graph.records import as_records, cache_record, is_cache, with_objects

# Held by who exports a model or looks at it as it was exported: its attributes change meanwhile.
EXPORTING = threading.RLock()

_STANDARD_LIBRARY = f"{Path(inspect.__file__).parent}/"
_LIBRARIES = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parents[2]}/")


def is_users(file: str) -> bool:
    """Whether a source file is neither torch's, nor Octavo's, nor Python's own."""
    own = file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file
    return not own and not file.startswith(_LIBRARIES)


@dataclass(frozen=True)
class Exported:
    """A program, and what it was specialized for."""

    program: ExportedProgram
    sizes: Specialized


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    may_be_open: Callable[[Tensor, int], bool] = lambda tensor, axis: True,
) -> Exported:
    """The model in evaluation mode as a program whose sizes are open where the model leaves them.

    Its in-place operators are such that `octavo.graph.passes.functionalize` can replace them. The
    model is left as it was.

    Args:
        model: what is exported.
        args, kwargs: the call.
        may_be_open: whether an axis of one of the call's tensors may be open.

    Raises:
        CaptureError: the model cannot be exported; the message names the line and the way out.
    """
    shapes = ShapesCollection()
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    for tensor in tensors:
        if tensor.dim():
            axes = (axis for axis in range(tensor.dim()) if may_be_open(tensor, axis))
            shapes[tensor] = dict.fromkeys(axes, Dim.AUTO)
    try:
        with (
            _exporting(),
            left_as_it_was(model),
            _buffers_kept(model),
            torch.no_grad(),
            WholeRecurrentLayers(),
            DataIsTheTensor(),
        ):
            caches = _Caches()
            model.register_forward_pre_hook(caches.given, with_kwargs=True)
            model.register_forward_hook(caches.returned)
            _name_keywords(model, kwargs)
            dynamic = shapes.dynamic_shapes(model, args, kwargs)
            zero_padded_tokens(model)
            noted = NotedGuards(is_users, export.__code__)
            model.register_forward_pre_hook(noted.watch)
            program = torch.export.export(
                model, args, kwargs or None, dynamic_shapes=dynamic, strict=False
            )
            noted.check()
            symbols = Symbols.of(program)
            if not (inline_regions(program) and is_safe(program)):
                program = program.run_decompositions({})
            recall(program)
            return Exported(program, specialized(symbols, noted))
    except CaptureError:
        raise
    except Exception as error:
        cause = "values" if _is_of_values(error) else ""
        raise CaptureError(_explain(model, error), cause) from error


def _name_keywords(model: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Let the signature of ``forward`` name the keywords that ``**kwargs`` takes: torch.export
    loses them otherwise. The caller takes it away.
    """
    forward, signature = model.forward, inspect.signature(model.forward)
    parameters = list(signature.parameters.values())
    extra = [name for name in kwargs if name not in signature.parameters]
    if extra and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in extra]

        def with_names(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        with_names.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*parameters[:-1], *named]
        )
        vars(model)["forward"] = with_names


class _Caches:
    """Gives ``forward`` objects where a graph has records, and takes records of what it returns.

    A cache that it is given and fills belongs to the caller, and a graph changes nothing of that:
    so the cache has to be part of the result.
    """

    def __init__(self) -> None:
        self._before: list[tuple[Any, list[Tensor]]] = []

    def given(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        """The call with objects; a hook."""
        call = with_objects(args), with_objects(kwargs)
        self._before = [(cache, _tensors_of(cache)) for cache in _caches_in(call)]
        return call

    def returned(self, module: nn.Module, args: Any, result: Any) -> Any:
        """The result with records; a hook."""
        kept = list(map(id, _caches_in(result)))
        for cache, before in self._before:
            now = _tensors_of(cache)
            same = len(now) == len(before) and all(map(operator.is_, now, before))
            if not same and id(cache) not in kept:
                raise CaptureError(
                    f"{type(module).__name__} fills the {type(cache).__name__} that it is given "
                    "and does not return it: a graph would leave the caller's as it was",
                    "code",
                )
        return as_records(result)


def _caches_in(tree: Any) -> list[Any]:
    return [leaf for leaf in pytree.tree_leaves(tree, is_leaf=is_cache) if is_cache(leaf)]


def _tensors_of(cache: Any) -> list[Tensor]:
    return pytree.tree_leaves(cache_record(cache))


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has the attributes that it had before, and
    its buffers their values.

    What ``forward`` stores in its module would be a tensor without values, left over from export.
    """
    with undone(model.modules()), evaluating(model):
        yield


@contextmanager
def _exporting() -> Iterator[None]:
    """One thread at a time, since torch.export keeps what it does in globals, and quietly: what
    matters of its warnings is in the error that we raise.
    """

    def to_nobody(*values: Any, **options: Any) -> None:
        """In place of print, which writes half a graph to stderr where export stops."""
        if threading.get_ident() != here:
            builtins.print(*values, **options)  # noqa: T201

    from torch.export import _trace  # here, since it imports torch's compiler, for a second

    here = threading.get_ident()
    with EXPORTING, quiet():
        _trace.print = to_nobody  # type: ignore[attr-defined]
        try:
            yield
        finally:
            del _trace.print  # type: ignore[attr-defined]


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Refuses ``self.buffer = new_value``: torch.export notices it in the outermost module only."""
    paths = {id(module): path for path, module in model.named_modules()}
    changed: list[str] = []

    def note(module: nn.Module, name: str, value: Tensor | None) -> None:
        before = module._buffers.get(name)
        if id(module) in paths and before is not None and before is not value:
            changed.append(f"{paths[id(module)]}.{name}".lstrip("."))

    hook = register_module_buffer_registration_hook(note)
    try:
        yield
    finally:
        hook.remove()
    refuse_state(changed)


def refuse_state(changed: list[str]) -> None:
    """Raise if there are buffers that ``forward`` changes; ``changed`` are their names."""
    if changed:
        raise CaptureError(
            f"forward changes {changed[0]!r} in evaluation mode; a quantized model keeps no "
            "state between calls: return the new value instead, or update it outside of forward",
            "code",
        )


def _is_of_values(error: Exception) -> bool:
    return "data-dependent" in str(error)


def _explain(model: nn.Module, error: Exception) -> str:
    """Why export stopped: the innermost line that is the user's, and the innermost module."""
    paths = {id(module): path or "the model itself" for path, module in model.named_modules()}
    where = module = ""
    packed = False
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        owner = frame.f_locals.get((*code.co_varnames, "")[0])
        packed = packed or frame.f_locals.get("batch_sizes") is not None
        if id(owner) in paths:
            module = f" in module {paths[id(owner)]!r}"
        if is_users(code.co_filename):
            where = f" at {code.co_filename}:{line} ({code.co_name})"
    first_line = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    way_out = "Check that the model runs on these example inputs"
    if packed:
        way_out = PACKED.capitalize()
    elif _is_of_values(error):
        way_out = (
            "A graph has no branches on tensor values: move such a branch out of forward, or "
            "replace it by torch.where"
        )
    return (
        f"{type(model).__name__} cannot be captured: torch.export stopped{where}{module}: "
        f"{type(error).__name__}: {first_line[:300]}. {way_out}; or quantize the submodules that "
        "do the work"
    )
