"""Weight methods on models without a graph: block after block, and going on after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from dying import Dies, Killed
from language_models import language_model, texts, transformers
from torch import Tensor, nn

import octavo
from octavo.errors import ArtifactError, CalibrationError, InputError
from octavo.flow.blockwise.blocks import chains_of, recorded
from octavo.flow.running import Calls
from octavo.quantization.weights import Layer, Rounded
from octavo.quantization.weights.moments import SecondMoments

FOUR = octavo.weight_only_qconfig(4, group_size=32)


def decoded(count: int = 4) -> list[dict[str, Tensor]]:
    return texts(count, decoder_input_ids=torch.randint(3, 60, (4, 9)))


def rounded(model: nn.Module, data: Any, *methods: octavo.WeightMethod, **options: Any) -> Any:
    return octavo.quantize(
        model,
        calibration=data,
        mode="weight_only",
        scope="modules",
        qconfig=FOUR,
        weights=methods,
        progress=False,
        **options,
    )


@pytest.mark.parametrize("name", ["llama, tied", "gpt 2", "mistral", "gemma 3", "bloom", "t5"])
def test_methods_bring_a_language_model_nearer(name: str) -> None:
    model, data = language_model(name), decoded() if name == "t5" else texts()
    with torch.no_grad():
        exact = model(**data[0]).logits
        errors = [
            float((rounded(model, data, *methods)(**data[0]).logits - exact).norm())
            for methods in ((), (octavo.Clip(), octavo.GPTQ()))
        ]
    assert errors[1] < 0.98 * errors[0]
    assert all(not isinstance(module, octavo.nn.Linear) for module in model.modules())


@dataclass(frozen=True)
class Spy(octavo.WeightMethod):
    """Keeps what was measured for each layer, and changes nothing."""

    name: ClassVar[str] = "spy"
    seen: ClassVar[dict[str, Any]] = {}

    def fits(self, layer: Layer) -> bool:
        return True

    def statistic(self, layer: Layer) -> SecondMoments:
        return SecondMoments()

    def round(self, layer: Layer, now: Rounded, seen: Any) -> Rounded:
        self.seen[layer.name] = seen
        return now


@pytest.mark.parametrize("name", ["llama", "gemma 3", "t5"])
def test_what_is_measured_is_what_the_blocks_before_make(name: str) -> None:
    """Block 0 reads what it does in float; the others what it does in the quantized model, whose
    table is still float.
    """
    model, data = language_model(name), decoded(2) if name == "t5" else texts(2)
    Spy.seen.clear()
    rules = octavo.QConfigMapping().set_global(FOUR).set_object_type("embedding", None)
    q = octavo.quantize(
        model,
        calibration=iter(data),
        mode="weight_only",
        scope="modules",
        qconfig=rules,
        weights=[Spy()],
        progress=False,
    )
    lists = {"t5": ["encoder.block"]}.get(name, ["model.layers"])
    inputs: dict[str, list[Tensor]] = {}
    paths = [path for path in Spy.seen if any(path.startswith(f"{at}.") for at in lists)]
    assert len(paths) >= 12
    for path in paths:
        net = model if path.startswith(f"{lists[0]}.0.") else q
        layer = net.get_submodule(path)
        layer.register_forward_pre_hook(
            lambda module, args, path=path: inputs.setdefault(path, []).append(
                args[0].flatten(0, -2)
            )
        )
    with torch.no_grad():
        for batch in data:
            model(**batch)
            q(**batch)
    # Inside of a block layers are rounded together, with what its float layers make.
    first = [path for path in paths if ".q" in path and "DecAttention" not in path]
    assert len(first) == 2
    for path in first:
        x = torch.cat(inputs[path])
        torch.testing.assert_close(
            Spy.seen[path].mean, x.t() @ x / len(x), rtol=2e-3, atol=2e-3 * float(x.square().mean())
        )


def test_what_several_layers_read_is_measured_once() -> None:
    Spy.seen.clear()
    rounded(language_model("llama"), texts(2), Spy())
    attention = "model.layers.0.self_attn"
    q, k, o = (Spy.seen[f"{attention}.{name}"] for name in ("q_proj", "k_proj", "o_proj"))
    assert q is k
    assert o is not q
    assert q.values == 2 * 4 * 12


class Counts(octavo.Clip):
    names: ClassVar[list[str]] = []

    def round(self, layer: Layer, now: Rounded, seen: Any) -> Rounded:
        self.names.append(layer.name)
        return super().round(layer, now, seen)

    def __repr__(self) -> str:
        return repr(octavo.Clip())


def test_it_goes_on_behind_the_blocks_that_are_done(tmp_path: Path) -> None:
    model, data = language_model("llama"), texts()
    right = rounded(model, data, octavo.Clip(), octavo.GPTQ())
    with pytest.raises(Killed):
        rounded(model, data, Dies(), octavo.GPTQ(), checkpoint=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.layers.0.safetensors"]
    Counts.names.clear()
    q = rounded(model, data, Counts(), octavo.GPTQ(), checkpoint=tmp_path)
    assert not any(name.startswith("model.layers.0.") for name in Counts.names)
    for name, tensor in right.state_dict().items():
        assert torch.equal(q.state_dict()[name], tensor), name


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    data = texts(1)
    rounded(language_model("llama"), data, octavo.Clip(), checkpoint=tmp_path)
    with pytest.raises(InputError, match="checkpoint of another model"):
        rounded(language_model("llama"), data, octavo.Clip(by_input=False), checkpoint=tmp_path)
    other = language_model("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.add_(0.1)
    with pytest.raises(InputError, match="checkpoint of another model"):
        rounded(other, data, octavo.Clip(), checkpoint=tmp_path)
    file = tmp_path / "model.layers.0.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ArtifactError, match=r"model\.layers\.0\.safetensors"):
        rounded(language_model("llama"), data, octavo.Clip(), checkpoint=tmp_path)
    with pytest.raises(InputError, match='scope="modules"'):
        octavo.quantize(nn.Linear(4, 4), torch.rand(2, 4), mode="dynamic", checkpoint=tmp_path)


def test_methods_that_measure_need_data() -> None:
    model = language_model("llama")
    with pytest.raises(CalibrationError, match=r"'gptq'.*there is no data"):
        rounded(model, None, octavo.GPTQ())
    scales = [
        rounded(model, None, *methods).lm_head.own_tensors()["weight_scale"]
        for methods in ((), (octavo.Clip(by_input=False),))
    ]
    assert not torch.equal(*scales)


class Branches(nn.Module):
    """A layer that the data may not reach, and blocks that do not follow each other."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(3)])
        self.rare = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e6:
            x = self.rare(x)
        return sum(block(x) for block in self.blocks) / 3  # type: ignore[no-any-return]


def batches() -> Iterator[Tensor]:
    for _ in range(3):
        yield torch.randn(64, 32)


def test_blocks_beside_each_other_are_measured_in_the_float_model() -> None:
    torch.manual_seed(0)
    model = Branches().eval()
    paths = [f"blocks.{n}.0" for n in range(3)]
    chains = chains_of(model, paths)
    calls = Calls.of(model, None, batches(), None, None)
    assert [chain.path for chain in chains] == ["blocks"]
    assert recorded(model, calls.first, chains) == []
    rules = octavo.QConfigMapping().set_global(FOUR).set_module_name("rare", None)
    x = torch.randn(64, 32)
    errors = []
    for methods in ((), (octavo.Clip(), octavo.GPTQ())):
        q = octavo.quantize(
            model,
            calibration=batches(),
            mode="weight_only",
            scope="modules",
            qconfig=rules,
            weights=methods,
            progress=False,
        )
        with torch.no_grad():
            errors.append(float((q(x) - model(x)).norm()))
    assert errors[1] < errors[0]
    with pytest.raises(CalibrationError, match="never calls 'rare'"):
        rounded(model, batches(), octavo.GPTQ())


def test_memory_is_that_of_one_block() -> None:
    """Nothing of a block is left when the next one runs, but what that one reads."""
    sizes = {**language_model("llama").config.to_dict(), "num_hidden_layers": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    chain = chains_of(model, [f"model.layers.{n}.mlp.up_proj" for n in range(4)])
    calls = Calls.of(model, None, texts(2), None, None)
    (chain_of_all,) = recorded(model, calls.all or (), chain)
    held = {
        id(tensor)
        for arguments in chain_of_all.others.values()
        for one in arguments
        for tensor in [*one.args, *one.kwargs.values()]
        if isinstance(tensor, Tensor) and tensor.shape[-1:] == (64,)
    }
    assert not held  # the hidden states that blocks read are not kept, but those of the first
    assert [tuple(x.shape) for x in chain_of_all.hidden] == [(4, 12, 64)] * 2


class Named(nn.Module):
    """Calls its layer by the name of the argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Any:
        return self.layer(input=x)


def test_inputs_by_name_and_of_inference_mode() -> None:
    torch.manual_seed(0)
    model = Named().eval()
    with torch.inference_mode():
        data = [torch.randn(16, 32) * torch.arange(32) for _ in range(2)]
    plain = rounded(model, data)
    q = rounded(model, data, octavo.Clip())
    x = torch.randn(64, 32) * torch.arange(32)
    with torch.no_grad():
        near, nearest = (float((net(x) - model(x)).norm()) for net in (q, plain))
    assert near < nearest


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", [octavo.Clip(), octavo.GPTQ()])
def test_inputs_that_are_not_finite(bad: float, method: octavo.WeightMethod) -> None:
    x = torch.randn(4, 32)
    x[1, 2] = bad
    with pytest.raises(CalibrationError, match="an input of 'layer' has a NaN or an infinity"):
        rounded(Named().eval(), [x], method)


def test_a_method_that_fits_no_layer_is_refused() -> None:
    with pytest.raises(InputError, match="'bias_correction', which does nothing"):
        octavo.quantize(
            nn.Linear(8, 8),
            mode="weight_only",
            scope="modules",
            weights=[octavo.GPTQ(), octavo.BiasCorrection()],
            calibration=[torch.rand(4, 8)],
        )


def test_a_method_of_another_mode_is_refused() -> None:
    model, data = Named().eval(), [torch.randn(8, 32)]
    with pytest.raises(InputError, match=r"'smoothquant'.* weight_only layer here.*another mode"):
        rounded(model, data, octavo.SmoothQuant())


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: octavo.AWQ(steps=0), "steps is"),
        (lambda: octavo.SmoothQuant(alpha=1.5), "alpha is"),
        (lambda: octavo.HQQ(power=0), "power is"),
        (lambda: octavo.HQQ(beta=-1.0), "beta is"),
        (lambda: octavo.Rotation(seed=0.5), "seed is"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_are_none(make: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        make()


def test_too_little_data_is_said_and_rounds_all_the_same() -> None:
    model, data = Named().eval(), [torch.randn(8, 32)]
    with pytest.warns(octavo.OctavoWarning, match="gptq: of 'layer' 8 rows of data are fewer"):
        q = rounded(model, data, octavo.GPTQ())
    with torch.no_grad():
        near, nearest = (
            float((net(data[0]) - model(data[0])).norm()) for net in (q, rounded(model, data))
        )
    assert near < nearest


def test_experts_that_no_row_reaches_are_named() -> None:
    model = language_model("mixtral")
    with torch.no_grad():
        for block in model.model.layers:  # all rows go to the same two of four
            block.mlp.gate.weight.zero_()
    ids = [{"input_ids": torch.randint(3, 60, (4, 32))} for _ in range(2)]
    before = rounded(model, ids)
    with pytest.warns(octavo.OctavoWarning, match=r"no row of the data is routed to 'model\.lay"):
        q = rounded(model, ids, octavo.GPTQ())
    for path in ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"):
        same = {
            name
            for name, part in q.get_submodule(path).named_children()
            if torch.equal(
                part.own_tensors()["weight"],
                before.get_submodule(f"{path}.{name}").own_tensors()["weight"],
            )
        }
        assert len(same) == 2
