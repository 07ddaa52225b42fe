"""Layouts of others, packed here integer by integer as they document it, and read and written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_transformers import built
from torch import Tensor, nn

import octavo
from octavo.errors import ArtifactError, ExportError, InputError

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 1}
IDS = torch.arange(12).reshape(2, 6)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def int32(word: int) -> int:
    """A word as a signed integer."""
    return word - 2**32 if word >= 2**31 else word


def words(rows: Tensor, bits: int, order: tuple[int, ...] = ()) -> Tensor:
    """Each row packed, its first integer (or that of the order) in the lowest bits of a word."""
    count, packed = 32 // bits, []
    for row in rows.tolist():
        row += [0] * (-len(row) % count)
        line = []
        for start in range(0, len(row), count):
            part = [row[start + place] for place in order or range(count)]
            line.append(int32(sum(value << (bits * place) for place, value in enumerate(part))))
        packed.append(line)
    return torch.tensor(packed, dtype=torch.int32)


class Weights:
    """Integers from 0 on ``[out, in]``, scales and zero points ``[out, groups]``, at random."""

    def __init__(self, layer: nn.Linear, bits: int, group_size: int, symmetric: bool) -> None:
        out, columns = layer.weight.shape
        groups = columns // group_size if group_size > 0 else 1
        self.bits = bits
        self.q = torch.randint(0, 2**bits, (out, columns))
        self.scale = (torch.rand(out, groups) + 0.5).mul(0.01).to(torch.float16)
        self.zero = torch.full((out, groups), 2 ** (bits - 1))
        if not symmetric:
            self.zero = torch.randint(1, 2**bits, (out, groups))

        self.groups = torch.arange(columns, dtype=torch.int32) // (columns // groups)

    @property
    def floats(self) -> Tensor:
        zero, scale = (one.float()[:, self.groups] for one in (self.zero, self.scale))
        return (self.q - zero) * scale

    def gptq(self, less: int = 1) -> dict[str, Tensor]:
        columns, groups = self.q.shape[1], self.scale.shape[1]
        return {
            "qweight": words(self.q, self.bits).t().contiguous(),
            "qzeros": words((self.zero - less).t(), self.bits),
            "scales": self.scale.t().contiguous(),
            "g_idx": torch.arange(columns, dtype=torch.int32) // (columns // groups),
        }

    def awq(self) -> dict[str, Tensor]:
        return {
            "qweight": words(self.q.t(), 4, AWQ_ORDER),
            "qzeros": words(self.zero.t(), 4, AWQ_ORDER),
            "scales": self.scale.t().contiguous(),
        }

    def packed(self) -> dict[str, Tensor]:
        zero = words(self.zero.t(), self.bits).t().contiguous()
        is_affine = bool((self.zero != 2 ** (self.bits - 1)).any())
        return {
            "weight_packed": words(self.q, self.bits),
            "weight_scale": self.scale,
            "weight_shape": torch.tensor(self.q.shape),
        } | ({"weight_zero_point": zero} if is_affine else {})

    def int8(self) -> dict[str, Tensor]:
        return {"weight": (self.q - 128).to(torch.int8), "weight_scale": self.scale}


GPTQ = {"quant_method": "gptq", "desc_act": False}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
INT8 = {"quant_method": "compressed-tensors", "format": "int-quantized"}
READ: dict[str, tuple[dict[str, Any], Callable[[Weights], dict[str, Tensor]], int, int, bool]] = {
    "gptq, symmetric": ({**GPTQ, "sym": True}, Weights.gptq, 4, 32, True),
    "gptq, affine": ({**GPTQ, "sym": False}, Weights.gptq, 4, 32, False),
    "gptq, 8 bits": (GPTQ, Weights.gptq, 8, 32, True),
    "gptq, 8 bits, affine": (GPTQ, Weights.gptq, 8, 32, False),
    "gptq, by channel": (GPTQ, Weights.gptq, 4, -1, True),
    "gptq, v2": ({**GPTQ, "checkpoint_format": "gptq_v2"}, lambda w: w.gptq(0), 4, 32, False),
    "awq": ({"quant_method": "awq", "version": "gemm"}, Weights.awq, 4, 32, False),
    "packed": (PACKED, Weights.packed, 4, 32, True),
    "packed, affine": (PACKED, Weights.packed, 4, 32, False),
    "packed, 8 bits": (PACKED, Weights.packed, 8, -1, True),
    "int8": (INT8, Weights.int8, 8, -1, True),
}


def write(
    folder: Path, settings: dict[str, Any], pack: Callable[[Weights], dict[str, Tensor]], *of: Any
) -> Any:
    """A folder whose linear layers, but for the head, are packed; the float model of the same."""
    torch.manual_seed(0)
    model = built("LlamaForCausalLM", **SIZES, num_hidden_layers=2, attention_bias=True)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and path != "lm_head":
            weights = Weights(layer, *of)
            del tensors[f"{path}.weight"]
            tensors |= {f"{path}.{name}": tensor for name, tensor in pack(weights).items()}
            layer.weight.data = weights.floats
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(IDS).logits
    return result


def assert_alike(model: Any, other: Any) -> None:
    """Kernels of four bits may keep as little as bfloat16 does of what they read."""
    expected = logits(other)
    assert (logits(model) - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(
    ("settings", "pack", "bits", "group", "symmetric"), READ.values(), ids=READ
)
def test_the_integers_of_others_are_read_as_they_are(
    settings: Any, pack: Any, bits: int, group: int, symmetric: bool, tmp_path: Path
) -> None:
    exact = write(tmp_path, settings, pack, bits, group, symmetric)
    q = octavo.read_checkpoint(tmp_path)
    assert type(q) is type(exact)
    assert type(q.lm_head) is nn.Linear
    layers = {p: m for p, m in q.named_modules() if isinstance(m, octavo.nn.Linear)}
    assert len(layers) == 2 * 7
    for path, layer in layers.items():
        weight = exact.get_submodule(path).weight
        torch.testing.assert_close(layer.dequantized()["weight"], weight, rtol=1e-6, atol=0)
        scheme = layer.weights["weight"].scheme
        assert (scheme.integers.bits, scheme.symmetric) == (bits, symmetric)
    assert_alike(q, exact)
    q.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, pad_token_id=0)


def ordered(weights: Weights) -> dict[str, Tensor]:
    """Columns of each group wherever their activations were: the float weight is the same."""
    order = torch.randperm(weights.q.shape[1])
    groups = torch.arange(len(order), dtype=torch.int32) // 32
    weights.q = weights.q[:, order]  # column i is of group groups[order[i]]
    weights.groups = groups[order]
    return weights.gptq() | {"g_idx": weights.groups}


def test_groups_by_activations_are_read(tmp_path: Path) -> None:
    exact = write(tmp_path, {**GPTQ, "desc_act": True}, ordered, 4, 32, False)
    q = octavo.read_checkpoint(tmp_path)
    layer = q.model.layers[1].mlp.down_proj
    assert isinstance(layer.linear, octavo.nn.Linear)
    wanted = exact.model.layers[1].mlp.down_proj.weight
    torch.testing.assert_close(layer.weight, wanted, rtol=1e-6, atol=0)
    assert_alike(q, exact)
    q.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, pad_token_id=0)
    with pytest.raises(ExportError, match=r"q_proj.*desc_act"):
        octavo.write_checkpoint(q, tmp_path / "out", format="gptq")


FORMS = {
    "4 bits": octavo.weight_only_qconfig(4, group_size=32),
    "4 bits, affine": octavo.weight_only_qconfig(4, group_size=32, symmetric=False),
    "8 bits": octavo.weight_only_qconfig(),
}


def quantized(qconfig: Any, **options: Any) -> Any:
    model = built("LlamaForCausalLM", **SIZES, num_hidden_layers=2, **options)
    rules = octavo.QConfigMapping().set_global(qconfig).set_module_name("lm_head", None)
    return octavo.quantize(model, mode="weight_only", qconfig=rules)


@pytest.mark.filterwarnings("ignore:written in float")
@pytest.mark.parametrize(
    ("format", "form"),
    [(one, form) for one in ("gptq", "compressed-tensors") for form in FORMS]
    + [("awq", form) for form in FORMS if form != "8 bits"],
)
def test_what_is_written_is_read_again(format: str, form: str, tmp_path: Path) -> None:
    q = quantized(FORMS[form], attention_bias=True)
    logits(q)  # kernels hold the integers from now on
    assert octavo.write_checkpoint(q, tmp_path / "out", format=format) == tmp_path / "out"
    again = octavo.read_checkpoint(tmp_path / "out")
    step = 0.0 if format == "compressed-tensors" else 2.0**-11  # scales are float16 in others
    for path, layer in q.named_modules():
        if isinstance(layer, octavo.nn.Linear):
            other = again.get_submodule(path)
            name = layer.weights["weight"]
            shift = 2 ** (name.scheme.integers.bits - 1) if name.scheme.integers.signed else 0
            scheme = other.weights["weight"].scheme
            other_shift = 2 ** (scheme.integers.bits - 1) if scheme.integers.signed else 0
            ours = name.integers(layer.tensors()).int() + shift
            theirs = other.weights["weight"].integers(other.tensors()).int() + other_shift
            assert torch.equal(ours, theirs)
            scales = (one.tensors()["weight_scale"] for one in (other, layer))
            torch.testing.assert_close(*scales, rtol=step, atol=0)


def test_gptq_is_written_as_documented(tmp_path: Path) -> None:
    q = quantized(octavo.weight_only_qconfig(4, group_size=32, symmetric=False))
    with pytest.warns(octavo.OctavoWarning, match=r"embed_tokens"):
        octavo.write_checkpoint(q, tmp_path, format="gptq")
    tensors = load_file(tmp_path / "model.safetensors")
    layer = q.model.layers[1].mlp.down_proj
    own, weight = layer.tensors(), layer.weights["weight"]
    at = "model.layers.1.mlp.down_proj"
    integers, zero = weight.integers(own), own["weight_zero_point"]
    assert torch.equal(tensors[f"{at}.qweight"], words(integers, 4).t())
    assert torch.equal(tensors[f"{at}.qzeros"], words((zero - 1).t(), 4))
    assert torch.equal(tensors[f"{at}.scales"], own["weight_scale"].t().half())
    assert torch.equal(tensors[f"{at}.g_idx"], torch.arange(96, dtype=torch.int32) // 32)
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    expected = {"bits": 4, "group_size": 32, "desc_act": False, "sym": False, "lm_head": False}
    assert settings.items() >= expected.items()


@pytest.mark.filterwarnings("ignore:written in float")
def test_awq_is_written_as_documented(tmp_path: Path) -> None:
    q = quantized(octavo.weight_only_qconfig(4, group_size=32, symmetric=False))
    octavo.write_checkpoint(q, tmp_path, format="awq")
    tensors = load_file(tmp_path / "model.safetensors")
    layer, at = q.model.layers[1].mlp.down_proj, "model.layers.1.mlp.down_proj"
    own, weight = layer.tensors(), layer.weights["weight"]
    integers, zero = weight.integers(own), own["weight_zero_point"]
    assert torch.equal(tensors[f"{at}.qweight"], words(integers.t(), 4, AWQ_ORDER))
    assert torch.equal(tensors[f"{at}.qzeros"], words(zero.t(), 4, AWQ_ORDER))
    assert torch.equal(tensors[f"{at}.scales"], own["weight_scale"].t().half())
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    expected = {"bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    assert settings.items() >= expected.items()
    assert settings["modules_to_not_convert"] == ["lm_head"]


@pytest.mark.filterwarnings("ignore:written in float")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_compressed_tensors_is_written_as_documented(form: Any, tmp_path: Path) -> None:
    q = quantized(form)
    octavo.write_checkpoint(q, tmp_path, format="compressed-tensors")
    tensors = load_file(tmp_path / "model.safetensors")
    layer, at = q.model.layers[1].mlp.down_proj, "model.layers.1.mlp.down_proj"
    own, weight = layer.tensors(), layer.weights["weight"]
    bits, signed = weight.scheme.integers.bits, weight.scheme.integers.signed
    integers = weight.integers(own).int() + (2 ** (bits - 1) if signed else 0)
    assert torch.equal(tensors[f"{at}.weight_packed"], words(integers, bits))
    assert torch.equal(tensors[f"{at}.weight_scale"], own["weight_scale"])
    assert tensors[f"{at}.weight_shape"].tolist() == [64, 96]
    if not signed:
        zero = words(own["weight_zero_point"].t(), bits).t()
        assert torch.equal(tensors[f"{at}.weight_zero_point"], zero)


@pytest.mark.filterwarnings("ignore:written in float")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_compressed_tensors_reads_it_itself(form: Any, tmp_path: Path) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.compressors import PackedQuantizationCompressor

    q = quantized(form)
    octavo.write_checkpoint(q, tmp_path, format="compressed-tensors")
    tensors = load_file(tmp_path / "model.safetensors")
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    scheme = quantization.QuantizationScheme(**settings["config_groups"]["group_0"])
    for path, layer in q.named_modules():
        if isinstance(layer, octavo.nn.Linear):
            own = {
                name.removeprefix(f"{path}."): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{path}.weight")
            }
            theirs = PackedQuantizationCompressor.decompress(own, scheme)["weight"]
            assert torch.equal(theirs, layer.dequantized()["weight"])


@pytest.mark.filterwarnings("ignore:written in float")
@pytest.mark.parametrize("form", ["4 bits", "8 bits"])  # their loader has no room for zero points
def test_transformers_computes_the_same_of_compressed_tensors(form: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    q = quantized(FORMS[form])
    octavo.write_checkpoint(q, tmp_path, format="compressed-tensors")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_alike(q, theirs)


@pytest.mark.filterwarnings("ignore:written in float")
def test_tied_heads_are_float_again(tmp_path: Path) -> None:
    model = built("LlamaForCausalLM", **SIZES, tie_word_embeddings=True)
    q = octavo.quantize(model, mode="weight_only")
    logits(q)
    octavo.write_checkpoint(q, tmp_path, format="compressed-tensors")
    again = octavo.read_checkpoint(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert_alike(again, q)


def _without_scales(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, file)


def _of_another_layer(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | {"model.layers.9.mlp.up_proj.qweight": torch.zeros(1)}, file)


def _of_uneven_groups(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    groups = (torch.arange(64, dtype=torch.int32) > 40).to(torch.int32)
    tensors["model.layers.1.mlp.up_proj.g_idx"] = groups
    save_file(tensors, file)


def _of_three_bits(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.qweight"
    tensors[name] = tensors[name][:6].contiguous()
    save_file(tensors, file)


def _of_groups_far_away(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.g_idx"] += 2**28  # counting them took 2 GB a layer
    save_file(tensors, file)


def _unknown(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "bitnet"
    (folder / "config.json").write_text(json.dumps(config))


def _cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "words_of_it"),
    [
        (_without_scales, r"scales.*layers\.1\.mlp\.up_proj"),
        (_of_another_layer, r"layers\.9\.mlp\.up_proj"),
        (_of_uneven_groups, r"layers\.1\.mlp\.up_proj.*its groups have"),
        (_of_groups_far_away, r"layers\.1\.mlp\.up_proj.*groups 268435456"),
        (_of_three_bits, r"layers\.1\.mlp\.up_proj.*3 bits"),
        (_unknown, "bitnet"),
        (_cut_off, r"model\.safetensors"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(
    damage: Any, words_of_it: str, tmp_path: Path
) -> None:
    write(tmp_path, GPTQ, Weights.gptq, 4, 32, True)
    damage(tmp_path)
    with pytest.raises((InputError, ArtifactError), match=words_of_it):
        octavo.read_checkpoint(tmp_path)


def _with_a_shorter_group(tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    settings["config_groups"]["group_0"]["weights"]["group_size"] = 48  # 48 and 16


def _in_blocks(tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    tensors[f"{UP}.weight_scale"] = tensors[f"{UP}.weight_scale"].reshape(32, -1)


def _with_large_zero_points(tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    shape = tensors[f"{UP}.weight_scale"].shape
    tensors[f"{UP}.weight_zero_point"] = torch.full(shape, 1_000_000, dtype=torch.int32)


def _with_a_list_of_groups(tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    settings["config_groups"] = [3]


UP = "model.layers.1.mlp.up_proj"


@pytest.mark.filterwarnings("ignore:written in float")
@pytest.mark.parametrize(
    ("change", "words_of_it"),
    [
        (_with_a_shorter_group, r"inputs are not \d full groups of 48"),
        (_in_blocks, r"weight_scale is \[32, "),
        (_with_large_zero_points, "zero point"),
        (_with_a_list_of_groups, "config"),
    ],
)
def test_other_scales_than_those_of_rows_and_groups_are_refused(
    change: Any, words_of_it: str, tmp_path: Path
) -> None:
    octavo.write_checkpoint(quantized(FORMS["4 bits"]), tmp_path, format="compressed-tensors")
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors, config["quantization_config"])
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=words_of_it):
        octavo.read_checkpoint(tmp_path)


def test_what_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    q = quantized(FORMS["4 bits"])
    with pytest.raises(InputError, match="gptq, awq"):
        octavo.write_checkpoint(q, tmp_path / "out", format="exl2")
    with pytest.raises(InputError, match="tokenizer"):
        octavo.write_checkpoint(q, tmp_path / "out", format="awq", tokenizer="tokenizer.json")
    with pytest.raises(ExportError, match="8 bits"):
        octavo.write_checkpoint(quantized(FORMS["8 bits"]), tmp_path / "out", format="awq")
    with pytest.raises(InputError, match="quantized"):
        octavo.write_checkpoint(built("LlamaForCausalLM"), tmp_path / "out", format="gptq")
    experts = built("MixtralForCausalLM", **SIZES, num_local_experts=2)
    mixed = octavo.quantize(experts, mode="weight_only")
    with pytest.raises(ExportError, match="experts"):
        octavo.write_checkpoint(mixed, tmp_path / "out", format="gptq")
    rules = octavo.QConfigMapping().set_global(FORMS["4 bits"])
    rules.set_module_name_regex(r".*up_proj", FORMS["8 bits"])
    two = octavo.quantize(built("LlamaForCausalLM", **SIZES), mode="weight_only", qconfig=rules)
    with pytest.raises(ExportError, match="bits"):
        octavo.write_checkpoint(two, tmp_path / "out", format="gptq")
    assert not (tmp_path / "out").exists()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="another folder"):
        octavo.write_checkpoint(q, tmp_path, format="gptq")


@pytest.mark.filterwarnings("ignore:written in float")
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    q, count = quantized(FORMS["4 bits"]), 0
    module = "octavo.model.language.checkpoints"
    monkeypatch.setattr(f"{module}._MOST", 2**14)

    def full(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(28, "No space left on device")
        save_file(*arguments)

    monkeypatch.setattr(f"{module}.save_file", full)
    there = tmp_path / "there"
    there.mkdir()
    (there / "tokenizer.json").write_text("{}")
    for folder in (tmp_path / "out", there):
        count = 0
        with pytest.raises(ArtifactError, match="No space left"):
            octavo.write_checkpoint(q, folder, format="gptq")
    assert not (tmp_path / "out").exists()
    assert [file.name for file in there.iterdir()] == ["tokenizer.json"]
    monkeypatch.undo()
    octavo.write_checkpoint(q, there, format="gptq")
    assert octavo.read_checkpoint(there) is not None
