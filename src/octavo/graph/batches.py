"""What a batch of a user's data means: the model's arguments, and the labels if there are any.

Calibration and comparison take *any* iterable of batches, a ``DataLoader`` as it is included. This
module is the one place that says how a batch becomes a call.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from octavo.arguments import BATCHES, described, expect, of
from octavo.errors import CalibrationError, InputError
from octavo.graph.calls import LABEL_ARGUMENTS
from octavo.graph.capture.example import PACKED, arguments_of, module_of, signature_of
from octavo.graph.pixels import Pixels
from octavo.graph.records import own_caches, with_objects, without_caches

LABEL_KEYS = (*LABEL_ARGUMENTS, "targets", "target", "y")


def size_of(tensors: Iterable[Tensor]) -> int:
    """How many samples a call has; 1 where no tensor has a first axis."""
    return next((tensor.shape[0] for tensor in tensors if tensor.dim()), 1)


@dataclass(frozen=True)
class Batch:
    """One call of the model: positional and keyword arguments, and the labels that came along.

    A record stands in it for a cache, which each call of a model would fill.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Any = None

    def __post_init__(self) -> None:
        args, kwargs = without_caches((self.args, self.kwargs))
        self.__dict__.update(args=args, kwargs=kwargs)

    def run(self, model: nn.Module) -> Any:
        """What a model answers. It fills caches of its own and changes inputs of its own, not those
        of the call: the next model shall have the same.
        """
        return self.apart().run_as_it_is(model)

    def run_as_it_is(self, model: nn.Module) -> Any:
        """`run` without a copy of the tensors, for stopwatches."""
        args, kwargs = own_caches((self.args, self.kwargs))
        return model(*with_objects(args), **with_objects(kwargs))

    def apart(self) -> Batch:
        """The call with tensors of its own."""
        own = {id(tensor): tensor.clone() for tensor in self.tensors}
        call = (self.args, self.kwargs)
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: own[id(t)], call)
        return Batch(args, kwargs, self.labels)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    @property
    def size(self) -> int:
        """How many samples; 1 where no tensor has a first axis."""
        return size_of(self.tensors)

    def beside(self, model: nn.Module) -> Batch:
        """The call with its tensors where the model has its parameters."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        call = (self.args, self.kwargs)
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.to(device), call)
        return Batch(args, kwargs, self.labels)


@dataclass(frozen=True)
class Signature:
    """The names of a model's arguments, in order; ``required`` of them have no default, or had a
    value when the model was captured.

    Arguments that take labels, of which a model makes a loss, are not among them, see `of`.

    Attributes:
        config: what a model of transformers says of itself, as JSON-ready data.
        main_input: the argument that such a model counts its samples by.
        losses: which of `octavo.graph.losses.LOSSES` it makes of labels.
        any_args, any_kwargs: whether it takes others too, by ``*args`` and by ``**kwargs``; a model
            that is captured does not.
    """

    names: tuple[str, ...]
    required: int
    config: Mapping[str, Any] | None = None
    main_input: str | None = None
    losses: tuple[str, ...] = ()
    any_args: bool = False
    any_kwargs: bool = False

    @classmethod
    def of(cls, model: nn.Module, captured: Collection[str] = ()) -> Signature:
        """The signature of a module's ``forward``.

        An argument that is named as labels (`LABEL_ARGUMENTS`) and is ``None`` by default is left
        out, so that what a batch has of this name is labels, and not for the model.

        Args:
            model: the float model.
            captured: arguments that it was captured with. Labels among them were given on purpose,
                and are arguments like others; and what a call gives by position reaches as far as
                they do, since the captured model has no defaults for them.

        Raises:
            InputError: it is not a module.
        """
        model = module_of(model)
        names: list[str] = []
        positional: list[str] = []
        required, many, more = 0, "", False
        for parameter in signature_of(model).parameters.values():
            takes_labels = parameter.name in LABEL_ARGUMENTS and parameter.default is None
            if takes_labels and parameter.name not in captured:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                many = parameter.name
            elif parameter.kind is parameter.VAR_KEYWORD:
                more = "Unpack" not in str(parameter.annotation)  # which names what it takes
            else:
                names.append(parameter.name)
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    positional.append(parameter.name)
                    required += parameter.default is parameter.empty
        config = _config_of(model)
        if captured:
            given = itertools.takewhile(lambda name: name in captured, positional)
            required = max(required, len(list(given)))
            required += sum(bool(many) and name.startswith(f"{many}_") for name in captured)
            names += [name for name in captured if name not in names]
            return cls(tuple(names), required, config, _main_input_of(model))
        more = more and not (config and names)  # transformers' own are for its inner functions
        return cls(
            tuple(names),
            required,
            config,
            _main_input_of(model),
            any_args=bool(many),
            any_kwargs=more,
        )


SIGNATURE = of(Signature, way_out="give octavo.graph.batches.Signature.of(model)")


def _config_of(model: nn.Module) -> dict[str, Any] | None:
    config = getattr(model, "config", None)
    if not callable(getattr(config, "to_dict", None)):
        return None
    data = json.loads(json.dumps(config.to_dict(), default=str))  # type: ignore[union-attr]
    data.pop("_name_or_path", None)  # of a folder on this machine, perhaps
    return dict(data)


def _main_input_of(model: nn.Module) -> str | None:
    name = getattr(model, "main_input_name", None)
    return name if isinstance(name, str) else None


def split_batch(
    batch: Any, signature: Signature, inputs: Callable[[Any], Any] | None = None
) -> Batch:
    """Split one batch into the model's arguments and the labels.

    ``inputs`` decides where it is given: it maps the batch to a tensor, a tuple of positional
    arguments or a dict of keyword arguments. Without it: a tensor is the only argument; a mapping
    gives keyword arguments, reduced to the names that the signature has; of a tuple or list the
    first ``signature.required`` items are arguments, and the item behind them is taken for the
    labels. Where ``forward`` takes any arguments, all are given to it but what must be labels:
    usual keys of a mapping, and a last item that is one integer a sample.

    Raises:
        InputError: the batch is of another type, or has fewer items than the model has arguments.
    """
    if inputs is not None:
        if not callable(inputs):
            raise InputError(
                f"inputs is a {type(inputs).__name__}: give a function from a batch to the model's "
                "arguments"
            )
        chosen, labels = inputs(batch), _labels(batch, signature)
        if isinstance(chosen, Mapping):
            return Batch((), dict(chosen), labels)
        args = tuple(chosen) if isinstance(chosen, tuple | list) else (chosen,)
        return Batch(args, {}, labels)
    if isinstance(batch, Tensor):
        return Batch((batch,), {})
    if isinstance(batch, Mapping):
        kwargs = {name: batch[name] for name in signature.names if name in batch}
        if signature.any_kwargs:
            kwargs |= {n: v for n, v in batch.items() if n not in (*kwargs, *LABEL_KEYS)}
        if not kwargs:
            raise InputError(
                f"the batch has the keys {sorted(map(str, batch))}, the model takes "
                f"{list(signature.names)}: none of them match; choose what the model gets, "
                f"{_chosen(batch, signature)}"
            )
        return Batch((), kwargs, _labels(batch, signature))
    if isinstance(batch, PackedSequence):
        raise InputError(f"a batch is a PackedSequence: {PACKED}")
    if isinstance(batch, tuple | list):
        count = _positional(batch, signature)
        if len(batch) < count:
            raise InputError(
                f"the batch has {len(batch)} items, the model needs {count} arguments "
                f"({', '.join(signature.names[:count])}); pass inputs=lambda batch: ... to choose"
            )
        return Batch(tuple(batch[:count]), {}, _labels(batch, signature))
    raise InputError(
        f"a batch is {described(batch)}: {_way_to_tensors(batch)}; or say what the model's "
        "arguments are, inputs=lambda batch: ..."
    )


def _way_to_tensors(batch: Any) -> str:
    if type(batch).__module__ == "numpy":
        return "give tensors, [torch.from_numpy(array) for array in arrays]"
    return "give a tensor, a tuple or list, or a dict of tensors"


def _chosen(batch: Mapping[Any, Any], signature: Signature) -> str:
    """``inputs=`` that picks as many of a batch's tensors as the model needs."""
    tensors = [key for key, value in batch.items() if isinstance(value, Tensor)]
    data = [key for key in tensors if key not in LABEL_KEYS and key != "label"] or list(batch)
    picked = ", ".join(f"batch[{key!r}]" for key in data[: max(1, signature.required)])
    return f"inputs=lambda batch: {f'({picked})' if ', ' in picked else picked or '...'}"


def example_call(
    example_inputs: Any,
    data: Iterable[Any] | None,
    signature: Signature,
    inputs: Callable[[Any], Any] | None = None,
) -> tuple[Batch, Iterable[Any] | None]:
    """The call to capture a model with, and the data, none of it used up.

    Args:
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; the first
            batch of the data without it.
        data: any iterable of batches.
        signature, inputs: see `split_batch`.

    Raises:
        CalibrationError: there is neither, or the data has no batches.
    """
    if example_inputs is not None:
        return arguments_in(example_inputs), data
    if data is None:
        raise CalibrationError(NO_EXAMPLE)
    (first,), data = peek(data)
    return split_batch(first, signature, inputs), data


def arguments_in(example_inputs: Any) -> Batch:
    """The call that a user's example stands for: a tensor, a tuple of arguments, or a dict."""
    if isinstance(example_inputs, Mapping):
        return Batch((), dict(example_inputs))
    return Batch(arguments_of(example_inputs), {})


NO_EXAMPLE = (
    "there is nothing to run the model on: pass calibration=loader, some batches of its data, or "
    "example_inputs, a tensor or a tuple of the model's arguments"
)
NO_BATCH = (
    "there was no calibration batch: the iterable is empty (a generator that was read before has "
    "none left); give about 100 batches of representative data"
)


def iterated(data: Iterable[Any]) -> Iterable[Any]:
    """Calibration data as it is.

    Raises:
        CalibrationError: it is no iterable of batches.
    """
    try:
        expect(BATCHES, calibration=data)
    except InputError as error:
        raise CalibrationError(str(error)) from None
    return data


def peek(data: Iterable[Any], count: int = 1) -> tuple[list[Any], Iterable[Any]]:
    """The first batches, and an iterable that still begins with them.

    Raises:
        CalibrationError: there is no batch.
    """
    rest = iter(iterated(data))
    first = list(itertools.islice(rest, count))
    if not first:
        raise CalibrationError(NO_BATCH)
    again = rest is not data and hasattr(data, "__len__")
    return first, data if again else itertools.chain(first, rest)


def with_floats(batch: Batch, pixels: Pixels | None) -> Batch:
    """The batch as the float model takes it.

    Where its image, the first float or uint8 tensor of four dimensions, is uint8, it is normalized;
    floats are taken to be so already. Without ``pixels`` the batch is what it was.

    Raises:
        InputError: mean or std is for another number of channels.
    """
    leaves, tree = pytree.tree_flatten((batch.args, batch.kwargs))
    images = (index for index, leaf in enumerate(leaves) if _is_image(leaf))
    image = next(images, None)
    if pixels is None or image is None or leaves[image].dtype != torch.uint8:
        return batch
    leaves[image] = pixels.normalized(leaves[image])
    args, kwargs = pytree.tree_unflatten(leaves, tree)
    return Batch(args, kwargs, batch.labels)


def _is_image(leaf: Any) -> bool:
    if not isinstance(leaf, Tensor) or leaf.dim() != 4:
        return False
    return leaf.is_floating_point() or leaf.dtype == torch.uint8


def _labels(batch: Any, signature: Signature) -> Any:
    """What of a batch is not for the model: under usual keys, or behind the arguments.

    Under several keys it is a dict of them, as of ``start_positions`` and ``end_positions``.
    """
    if isinstance(batch, Mapping):
        labels = {k: batch[k] for k in LABEL_KEYS if k in batch and k not in signature.names}
        return labels if len(labels) > 1 else next(iter(labels.values()), None)
    count = _positional(batch, signature) if isinstance(batch, tuple | list) else 1
    return batch[count] if isinstance(batch, tuple | list) and len(batch) > count else None


def _positional(batch: Sequence[Any], signature: Signature) -> int:
    """How many items of a batch are arguments."""
    count = max(1, signature.required)
    if not signature.any_args or len(batch) <= count:
        return count
    last = batch[-1]
    are_labels = isinstance(last, Tensor) and last.dim() < 2 and not last.is_floating_point()
    return len(batch) - are_labels
