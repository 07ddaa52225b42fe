"""Encoders with a padding mask return what they return in evaluation."""

from __future__ import annotations

import pytest
import torch
from running import run_graph
from torch import Tensor, nn

from octavo.graph.capture.capture import capture


class Classifier(nn.Module):
    """Reads all tokens of an encoder, the padded ones too."""

    def __init__(self, layer: nn.TransformerEncoderLayer, norm: bool = False) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16) if norm else None)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        y = self.encoder(x, src_key_padding_mask=padding)
        return self.head(y.mean(1))  # type: ignore[no-any-return]


def at_end(*lengths: int) -> Tensor:
    return torch.arange(9) >= torch.tensor(lengths)[:, None]


PADDINGS = {
    "at the end": at_end(4, 9, 6),
    "no padding": at_end(9, 9, 9),
    "at the start": at_end(4, 9, 6).flip(1),
    "in one sample elsewhere": torch.cat([at_end(4, 9), at_end(6).flip(1)]),
    "one sample": at_end(5),
}
LAYERS = {
    "norm behind": {},
    "norm in front, no fast way": {"norm_first": True},
    "odd heads, no fast way": {"nhead": 1},
}


@pytest.mark.filterwarnings("ignore:.*nested tensor", "ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("changes", LAYERS.values(), ids=LAYERS)
def test_padded_tokens_are_what_evaluation_makes_of_them(
    changes: dict[str, object], norm: bool
) -> None:
    torch.manual_seed(0)
    options = {"nhead": 2, "batch_first": True} | changes
    layer = nn.TransformerEncoderLayer(16, dim_feedforward=32, **options)  # type: ignore[arg-type]
    model = Classifier(layer, norm).eval()
    x = torch.randn(3, 9, 16)
    graph = capture(model, (x, at_end(4, 9, 6)))
    slow = []
    for padding in PADDINGS.values():
        tokens = x[: len(padding)]
        with torch.no_grad():
            expected = model(tokens, padding)
        torch.testing.assert_close(
            run_graph(graph, tokens, padding), expected, rtol=1e-4, atol=1e-5
        )
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            slow.append(torch.allclose(model(tokens, padding), expected, rtol=1e-4, atol=1e-5))
        torch.backends.mha.set_fastpath_enabled(True)
    # Where there is a fast way it makes a difference, for padding at the end.
    takes_it = model.encoder.use_nested_tensor
    assert slow == ([False, True, True, True, False] if takes_it else [True] * 5)
    assert takes_it == (changes == {})
    assert not model.encoder._forward_pre_hooks
    assert not model.encoder.layers[-1]._forward_hooks


@pytest.mark.filterwarnings("ignore:.*nested tensor")
def test_a_mask_of_floats_and_none() -> None:
    torch.manual_seed(0)
    model = Classifier(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)).eval()
    x = torch.randn(3, 9, 16)
    floats = torch.zeros(3, 9).masked_fill(at_end(4, 9, 6), -torch.inf)
    with torch.no_grad():
        expected, without = model(x, floats), model(x)
    found = run_graph(capture(model, (x, floats)), x, floats)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run_graph(capture(model, x), x), without, rtol=1e-4, atol=1e-5)


def test_what_was_switched_off_stays_off() -> None:
    torch.manual_seed(0)
    model = Classifier(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)).eval()
    call = torch.randn(3, 9, 16), at_end(4, 9, 6)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        graph = capture(model, call)
        torch.testing.assert_close(run_graph(graph, *call), model(*call), rtol=1e-4, atol=1e-5)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert "all" not in {node.short_op for node in graph.nodes}
