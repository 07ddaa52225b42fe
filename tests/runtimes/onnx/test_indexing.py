"""Parts of tensors as ONNX: what torch gives, at any batch size."""

from __future__ import annotations

import pytest
import torch

PLACES = torch.tensor([[2, 0], [1, 2]])
OTHER_PLACES = torch.tensor([3, -1])


def written(x, part):
    """Parts replaced in place, which capture turns into values of their own."""
    x = x.clone()
    x[:, 1] = part
    x[:, 2, 1:3] = 5
    return x


FUNCTIONS = {
    "slice": lambda x: x[:, 1:, ::2, -4:-1],
    "slice to a size": lambda x: x[:, :, :, : x.shape[0]],
    "slice of the batch": lambda x: x[1:],
    "select": lambda x: x[:, -1, 2],
    "narrow": lambda x: x.narrow(2, 1, 2),
    "narrow by a size": lambda x: x.narrow(3, x.shape[0] - 1, 2),
    "split": lambda x: list(x.split(4, -1)),
    "split into sizes": lambda x: list(x.split([1, 3, 2], 3)),
    "split into one": lambda x: list(x.split(6, -1)),
    "chunk": lambda x: list(x.chunk(4, 3)),
    "unbind": lambda x: list(x.unbind(1)),
    "flip": lambda x: x.flip(1, -1),
    "roll": lambda x: x.roll((1, -2), (2, -1)),
    "roll around": lambda x: x.roll((9, 0), (2, 3)),
    "roll the batch": lambda x: x.roll(1, 0),
    "gather": lambda x: x.gather(3, (x > 0).long()),
    "gather a part": lambda x: x.gather(1, (x[:, :1, :2] > 0).long()),
    "index select": lambda x: x.index_select(2, OTHER_PLACES % 4),
    "index": lambda x: x[:, PLACES],
    "index in front": lambda x: x[OTHER_PLACES % 2],
    "indices": lambda x: x[:, PLACES, OTHER_PLACES],
    "indices behind": lambda x: x[:, :, PLACES, OTHER_PLACES],
    "indices in front": lambda x: x[PLACES % 2, OTHER_PLACES % 3],
    "indices apart": lambda x: x[:, PLACES, :, OTHER_PLACES],
    "indices of three axes": lambda x: x[:, PLACES, OTHER_PLACES, PLACES],
    "one row of each sample": lambda x: x[torch.arange(x.shape[0]), (x[:, 0, 0, 0] > 0).long()],
    "scatter": lambda x: x.scatter(3, (x[:, :, :, :1] > 0).long(), x + 1),
    "scatter a number": lambda x: x.scatter(3, (x[:, :, :, :1] > 0).long(), 7.0),
    "scatter add": lambda x: x.scatter_add(3, (x > 0).long(), x),
    "added by rows": lambda x: x.index_add(2, OTHER_PLACES % 2, x[:, :, 1:3], alpha=3),
    "added to samples": lambda x: (x + 1).index_add(0, torch.arange(x.shape[0]) // 2, x),
    "copied by rows": lambda x: x.index_copy(-1, OTHER_PLACES % 4, x[..., :2] + 1),
    "written in place": lambda x: written(x, x[:, 0] + 1),
    "rows of a number": lambda x: written(x, 3),
    "slice replaced": lambda x: torch.slice_scatter(x, x[:, :, :, 2:4] + 1, 3, 0, 2),
    "chunks of samples": lambda x: [part + 1 for part in x.transpose(0, 1).chunk(2, 1)],
    "some of samples": lambda x: torch.cat([x, x]).split(5)[1],
    "last replaced": lambda x: torch.select_scatter(x, x[:, 0], 1, -1),
}


@pytest.mark.parametrize("name", FUNCTIONS)  # together they would fix the size of the batch
def test_functions(name, agrees):
    agrees(FUNCTIONS[name], torch.randn(4, 3, 4, 6))  # a size of 1 on the way would be fixed


REFUSED = {
    "roll of all": (lambda x: x.roll(2), "name its axes"),
    "in steps": (lambda x: torch.slice_scatter(x, x[:, ::2], 1, 0, None, 2), "torch.where"),
    "reduced": (
        lambda x: x.scatter(1, (x > 0).long(), x, reduce="multiply"),
        "scatter_add",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_named(name, names_the_way_out):
    names_the_way_out(*REFUSED[name], torch.randn(5, 3, 4))
