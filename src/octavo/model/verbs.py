"""What is done with a quantized model of either kind: one graph, or a model of the user's own class
with quantized parts.

Tested in tests/model/test_parts.py and tests/model/test_parts_file.py.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar, overload

from torch import nn

from octavo.arguments import FILE, PATH, TEXT, called_rightly, expect, optional
from octavo.errors import ArtifactError, InputError
from octavo.graph.copying import copied
from octavo.model import loading, parts_file
from octavo.model.kinds import require_quantized
from octavo.model.model import QuantizedModel
from octavo.model.parts import lower_parts, parts_of
from octavo.model.parts_summary import PartsSummary, summarize_parts
from octavo.model.summary import Summary

Model = TypeVar("Model", bound=nn.Module)


@overload
def summary(q: QuantizedModel) -> Summary: ...  # type: ignore[overload-overlap]
@overload
def summary(q: nn.Module) -> PartsSummary: ...


def summary(q: nn.Module) -> Summary | PartsSummary:
    """What runs in int8, what does not, and why. Prints as a table.

    Args:
        q: what `octavo.quantize` returned, or a model with such models in it.

    Raises:
        InputError: nothing in it is quantized.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> octavo.summary(octavo.quantize(net, scope="modules")).parts["0"].runs
        'dynamic int8'
    """
    if isinstance(q, QuantizedModel):
        return q.summary()
    _require_parts(q, "summary")
    return summarize_parts(q)


@called_rightly()
def save(q: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write one file, whole or not at all; `load` reads it.

    Of a model with parts it holds these, and the tensors outside of them; not the model's code.

    Args:
        q: what `octavo.quantize` returned, or a model with such models in it.
        path: of the file.

    Raises:
        InputError: nothing in it is quantized.
        ArtifactError: the file cannot be written.

    Example:
        >>> octavo.save(q, "model.octavo")
        >>> torch.equal(octavo.load("model.octavo")(images), q(images))
        True
    """
    expect(PATH, path=path)
    if isinstance(q, QuantizedModel):
        q.save(path)
    else:
        _require_parts(q, "save")
        parts_file.save(q, path)


@overload
def load(
    path: str | os.PathLike[str], runtime: str | None = None, *, check: bool = True
) -> QuantizedModel: ...
@overload
def load(
    path: str | os.PathLike[str], runtime: str | None = None, *, into: Model, check: bool = True
) -> Model: ...


@called_rightly()
def load(
    path: str | os.PathLike[str],
    runtime: str | None = None,
    *,
    into: nn.Module | None = None,
    check: bool = True,
) -> Any:
    """Load a quantized model; no code in the file is run.

    Args:
        path: a ``.octavo`` file.
        runtime, check: as for `QuantizedModel.lower`. ``None`` is how the model was tuned for this
            kind of CPU, where the file says so, else ``"torch"``.
        into: for a file of a model with parts: the float model, built as it was when it was
            quantized. It becomes the quantized one, in place: parts take the places of its modules,
            and what is outside of them gets the file's tensors. Its own values do not matter: it
            may be on the meta device (``with torch.device("meta"): model = Net()``).

    Returns:
        The quantized model; ``into`` itself where that is given.

    Raises:
        ArtifactError: the file is missing, damaged, hostile or of a newer version; or it does not
            fit ``into``, which is left as it was then. It names the first tensor or module.
        RuntimeUnavailable: the runtime cannot run here.
        RuntimeDisagrees: it computes something else than the oracle.

    Example:
        >>> q.save("model.octavo")
        >>> octavo.load("model.octavo")(images).shape
        torch.Size([64, 10])
    """
    expect(FILE, path=path)
    optional(TEXT, runtime=runtime)
    if into is None:
        return loading.load(path, runtime, check=check)
    if isinstance(into, QuantizedModel) or not isinstance(into, nn.Module):
        raise InputError(
            f"into is a {type(into).__name__}: give the float model that was quantized, a "
            "torch.nn.Module"
        )
    content = parts_file.read(path)
    try:
        parts_file.put_into(into, content, runtime, check)
    except ArtifactError as error:
        raise ArtifactError(f"{os.fspath(path)} cannot be loaded: {error}") from None
    return into


def load_beside(path: str | os.PathLike[str], model: nn.Module, runtime: str) -> nn.Module:
    """`load`, into a copy of the float model where the file needs one.

    Raises:
        OctavoError: as `load`.
    """
    expect(FILE, path=path)
    if parts_file.holds_parts(path):
        return load(path, runtime, into=copied(model))
    return load(path, runtime)


@overload
def lower(q: QuantizedModel, runtime: str, **options: Any) -> QuantizedModel: ...
@overload
def lower(q: Model, runtime: str, **options: Any) -> Model: ...


def lower(q: nn.Module, runtime: str, **options: Any) -> nn.Module:
    """The same model on another runtime; of a model with parts, its regions.

    Args:
        q: what `octavo.quantize` returned. It is left as it was.
        runtime, options: as for `QuantizedModel.lower`.

    Raises:
        InputError: nothing in it is quantized.
        OctavoError: as `QuantizedModel.lower`.

    Example:
        >>> octavo.lower(q, "onnxruntime").runtime
        'onnxruntime'
    """
    if isinstance(q, QuantizedModel):
        return q.lower(runtime, **options)
    _require_parts(q, "lower")
    return lower_parts(q, runtime, **options)


def _require_parts(q: object, function: str) -> None:
    if not isinstance(q, nn.Module) or not parts_of(q):
        require_quantized(q, function)
