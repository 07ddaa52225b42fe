"""`quantize_folder`: block by block from a folder to a folder, and what may go wrong on the way."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_transformers import built

import octavo
from octavo.errors import ArtifactError, CalibrationError, InputError, PlanError

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 1}
FOUR = octavo.weight_only_qconfig(4, group_size=32)
IDS = torch.arange(12).reshape(2, 6)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "a table that scales": ("Gemma3ForCausalLM", {"head_dim": 16}),
    "transposed": ("GPT2LMHeadModel", {"n_embd": 32, "n_head": 2, "n_layer": 2, "eos_token_id": 1}),
    "experts": ("MixtralForCausalLM", {"num_local_experts": 4}),
}


def saved(folder: Path, name: str = "LlamaForCausalLM", **options: Any) -> Path:
    """A float model in bfloat16, in several shards, whose norms and biases do something."""
    model = built(name, **{**SIZES, "num_hidden_layers": 3, **options}).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.rand_like(parameter)
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling.py").write_text("raise SystemExit")
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def loaded(folder: Path) -> Any:

    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(("name", "options"), MODELS.values(), ids=MODELS)
def test_it_is_the_model_that_quantize_makes(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    source, out = saved(tmp_path / "float", name, **options), tmp_path / "q"
    assert octavo.quantize_folder(source, out, qconfig=FOUR) == out
    exact = getattr(transformers, name).from_pretrained(source)
    expected = octavo.quantize(exact, mode="weight_only", qconfig=FOUR)
    q = loaded(out)
    assert type(q) is type(exact)
    assert torch.equal(logits(q), logits(expected))
    layers = [module for module in q.modules() if isinstance(module, octavo.nn.Linear)]
    assert len(layers) >= 3 * 4
    assert not any(
        isinstance(module, torch.nn.Linear)
        for path, module in q.named_modules()
        if not path.endswith(("gate", "router"))
    )
    assert (out / "tokenizer.json").exists()
    assert not (out / "modeling.py").exists()
    q.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(loaded(tmp_path / "again")), logits(q))


def test_rules_and_methods_are_those_of_quantize(tmp_path: Path) -> None:
    source = saved(tmp_path / "float")
    rules = (
        octavo.QConfigMapping()
        .set_global(octavo.weight_only_qconfig())
        .set_module_name_regex(r".*\.mlp\..*", FOUR)
        .set_module_name("lm_head", None)
    )
    methods = [octavo.Clip(by_input=False)]
    octavo.quantize_folder(source, tmp_path / "q", qconfig=rules, weights=methods)
    exact = transformers.LlamaForCausalLM.from_pretrained(source)
    expected = octavo.quantize(exact, mode="weight_only", qconfig=rules, weights=methods)
    q = loaded(tmp_path / "q")
    assert torch.equal(logits(q), logits(expected))
    assert isinstance(q.lm_head, torch.nn.Linear)
    nearest = octavo.quantize(exact, mode="weight_only", qconfig=rules)
    assert not torch.equal(logits(q), logits(nearest))


class Stopped(BaseException):
    """Ctrl-C."""


def test_what_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.flow.blockwise import folder

    source, out = saved(tmp_path / "float"), tmp_path / "q"
    octavo.quantize_folder(source, tmp_path / "whole", qconfig=FOUR)
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    written: list[str] = []
    write = folder.write_shard

    def stopping(path: Path, *arguments: Any) -> None:
        if len(written) == 2:
            raise Stopped
        write(path, *arguments)
        written.append(path.name)

    with monkeypatch.context() as patched:
        patched.setattr(folder, "write_shard", stopping)
        with pytest.raises(Stopped):
            octavo.quantize_folder(source, out, qconfig=FOUR)
        assert sorted(path.name for path in out.iterdir()) == names[:2]
        with pytest.raises(InputError, match="another folder"):
            octavo.quantize_folder(source, out, qconfig=octavo.weight_only_qconfig())
        written = ["none"] * 3
        octavo.quantize_folder(source, out, qconfig=FOUR)
    assert written[3:] == names[2:]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )
    assert torch.equal(logits(loaded(out)), logits(loaded(tmp_path / "whole")))
    octavo.quantize_folder(source, out, qconfig=FOUR)  # there is nothing left to do


ROWS = [torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(n)) for n in range(6)]
OUTSIDE = r"lm_head|model\.embed_tokens|transformer\.w[tp]e"
BLOCKS_ALONE = octavo.QConfigMapping().set_global(FOUR).set_module_name_regex(OUTSIDE, None)


def integers_of(model: Any) -> dict[str, torch.Tensor]:
    return {
        f"{path}.{name}": weight
        for path, part in octavo.model.parts.parts_of(model).items()
        for name, weight in part.dequantized().items()
    }


ROUNDED = [octavo.Clip(), octavo.GPTQ()]
# Those of which a layer outside of the blocks would see data in `quantize`, and not here, keep the
# head and the tables float.
BY_DATA: dict[str, tuple[str, Any, list[Any]]] = {
    **{name: (name, BLOCKS_ALONE, ROUNDED) for name in ("llama", "tied", "transposed", "experts")},
    "scaled": ("llama", BLOCKS_ALONE, [octavo.AWQ(), *ROUNDED]),
    "experts, scaled": ("experts", BLOCKS_ALONE, [octavo.AWQ()]),
    "turned": ("tied", FOUR, [octavo.Rotation()]),
    "turned, a table that scales": ("turned", FOUR, [octavo.Rotation()]),
    "turned and scaled": ("tied", BLOCKS_ALONE, [octavo.Rotation(), octavo.AWQ(), octavo.GPTQ()]),
    "experts, turned": ("experts", BLOCKS_ALONE, [octavo.Rotation(seed=3), octavo.GPTQ()]),
}
MODELS["turned"] = ("GemmaForCausalLM", {"head_dim": 16, "num_hidden_layers": 2})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", BY_DATA)
def test_data_goes_through_the_blocks_as_in_quantize(case: str, tmp_path: Path) -> None:
    name, rules, methods = BY_DATA[case]
    kind, options = MODELS[name]
    source = saved(tmp_path / "float", kind, **options)
    how: Any = {"calibration": ROWS, "qconfig": rules, "weights": methods, "progress": False}
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    right = octavo.quantize(model, mode="weight_only", scope="modules", **how)
    q = loaded(octavo.quantize_folder(source, tmp_path / "out", **how))
    exact, found = integers_of(right), integers_of(q)
    nearest = integers_of(octavo.quantize(model, mode="weight_only", qconfig=rules))
    assert found.keys() == exact.keys()
    for at, weight in exact.items():
        torch.testing.assert_close(found[at], weight, rtol=0, atol=0)
    assert any(not torch.equal(nearest[at], weight) for at, weight in exact.items())
    assert torch.equal(logits(q), logits(right))  # of norms and tables, too


def test_a_doubt_is_told_once_for_the_layers_of_all_blocks(tmp_path: Path) -> None:
    source = saved(tmp_path / "float")
    with pytest.warns(octavo.errors.OctavoWarning, match="fewer than") as told:
        octavo.quantize_folder(
            *(source, tmp_path / "out"),
            **{"calibration": ROWS[:1], "qconfig": BLOCKS_ALONE, "progress": False},
            weights=[octavo.GPTQ()],
        )
    words = [str(one.message) for one in told if "fewer than" in str(one.message)]
    reasons = [text[text.index("rows of data") :] for text in words]
    assert len(reasons) == len(set(reasons))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "methods",
    [[octavo.GPTQ()], [octavo.Rotation(), octavo.AWQ(), octavo.GPTQ()]],
    ids=["rounded", "turned and scaled"],
)
def test_data_goes_on_behind_the_blocks_that_are_there(methods: Any, tmp_path: Path) -> None:
    source = saved(tmp_path / "float", attention_bias=True)
    how: Any = {"calibration": ROWS, "qconfig": FOUR, "progress": False, "weights": methods}
    whole = octavo.quantize_folder(source, tmp_path / "whole", **how)
    octavo.quantize_folder(source, tmp_path / "cut", **how)
    for number in (3, 4):  # the second block and the third
        next((tmp_path / "cut").glob(f"model-0000{number}-*")).unlink()
    (tmp_path / "cut" / "config.json").unlink()
    again = octavo.quantize_folder(source, tmp_path / "cut", **how)
    exact, found = integers_of(loaded(whole)), integers_of(loaded(again))
    assert all(torch.equal(found[at], weight) for at, weight in exact.items())
    assert torch.equal(logits(loaded(whole)), logits(loaded(again)))
    next((tmp_path / "cut").glob("model-00004-*")).unlink()
    (tmp_path / "cut" / "config.json").unlink()
    with pytest.raises(InputError, match="another model"):
        octavo.quantize_folder(source, tmp_path / "cut", **{**how, "calibration": ROWS[:3]})


def test_methods_that_can_do_nothing_are_refused(tmp_path: Path) -> None:
    source, out = saved(tmp_path / "float"), tmp_path / "out"
    refused: list[tuple[list[Any], str]] = [
        ([octavo.GPTQ(), octavo.AWQ()], "'awq' behind a method that rounds"),
        ([octavo.GPTQ(), octavo.Rotation()], "'rotation' behind other methods"),
        ([octavo.SmoothQuant()], "does nothing to any weight_only layer"),
    ]
    for methods, said in refused:
        with pytest.raises(InputError, match=said):
            octavo.quantize_folder(source, out, calibration=ROWS, qconfig=FOUR, weights=methods)
    with pytest.raises(CalibrationError, match="calibration="):
        octavo.quantize_folder(source, out, qconfig=FOUR, weights=[octavo.Rotation()])
    assert not out.exists()


@pytest.mark.parametrize("name", ["transposed", "a table that scales"])
def test_a_model_that_a_rotation_would_change_is_refused(name: str, tmp_path: Path) -> None:
    kind, options = MODELS[name]
    source = saved(tmp_path / "float", kind, **options)
    turn: Any = {"calibration": ROWS, "qconfig": FOUR, "weights": [octavo.Rotation()]}
    with pytest.raises(InputError, match=r"octavo\.Rotation out of weights="):
        octavo.quantize_folder(source, tmp_path / "out", **turn)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_model_is_left_alone(tmp_path: Path) -> None:
    source = saved(tmp_path / "float")
    with pytest.raises(InputError, match="another"):
        octavo.quantize_folder(source, source, qconfig=FOUR)
    octavo.quantize_folder(source, tmp_path / "q", qconfig=FOUR)
    before = {path: path.read_bytes() for path in (tmp_path / "q").iterdir()}
    other = saved(tmp_path / "other", num_hidden_layers=2)
    with pytest.raises(InputError, match="another"):
        octavo.quantize_folder(other, tmp_path / "q", qconfig=FOUR)
    with pytest.raises(InputError, match="quantized already"):
        octavo.quantize_folder(tmp_path / "q", tmp_path / "twice", qconfig=FOUR)
    assert {path: path.read_bytes() for path in (tmp_path / "q").iterdir()} == before


def _without_shard(folder: Path) -> str:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.unlink()
    return file.name


def _cut_off(folder: Path) -> str:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    return file.name


def _without_tensor(folder: Path) -> str:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"][name := "model.layers.1.mlp.up_proj.weight"]
    index.write_text(json.dumps(content))
    return name


def _of_another_shape(folder: Path) -> str:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = folder / index["weight_map"][name := "model.layers.1.mlp.up_proj.weight"]
    save_file(load_file(file) | {name: torch.zeros(3, 32)}, file)
    return name


def _not_json(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return "config.json"


def _not_json_of_generation(folder: Path) -> str:
    (folder / "generation_config.json").write_text("{")
    return "generation_config.json"


def _with_code(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}
    config |= {"auto_map": code, "model_type": "unheard of"}
    (folder / "config.json").write_text(json.dumps(config))
    return "config.json"


@pytest.mark.parametrize(
    "damage",
    [
        _without_shard,
        _cut_off,
        _without_tensor,
        _of_another_shape,
        _not_json,
        _not_json_of_generation,
        _with_code,
    ],
)
def test_a_damaged_source_is_one_clear_error(damage: Any, tmp_path: Path) -> None:
    source = saved(tmp_path / "float")
    name = damage(source)
    with pytest.raises((ArtifactError, InputError), match=name.replace(".", r"\.")):
        octavo.quantize_folder(source, tmp_path / "q", qconfig=FOUR)
    assert not (tmp_path / "q" / "config.json").exists()


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """A disk that is full after so many bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_the_first_file_leaves_nothing(tmp_path: Path) -> None:
    source, out = saved(tmp_path / "float", vocab_size=2048), tmp_path / "q"
    with small_files(20_000), pytest.raises(ArtifactError, match="cannot write"):
        octavo.quantize_folder(source, out, qconfig=FOUR)
    assert not out.exists()
    octavo.quantize_folder(source, out, qconfig=FOUR)
    assert logits(loaded(out)).isfinite().all()


@pytest.mark.parametrize("alter", [lambda data: data[:-9] + b"x" + data[-8:], lambda d: d[:-9]])
def test_an_altered_shard_is_not_loaded(alter: Any, tmp_path: Path) -> None:
    out = octavo.quantize_folder(saved(tmp_path / "float"), tmp_path / "q", qconfig=FOUR)
    file = sorted(out.glob("*.safetensors"))[2]
    file.write_bytes(alter(file.read_bytes()))
    with pytest.raises(ArtifactError, match=file.name):
        loaded(out)
    with pytest.raises(ArtifactError, match=file.name):
        octavo.quantize_folder(tmp_path / "float", out, qconfig=FOUR)


def test_what_cannot_be_done_is_said_before_anything_is_written(tmp_path: Path) -> None:
    source, out = saved(tmp_path / "float"), tmp_path / "q"
    with pytest.raises(CalibrationError, match="gptq"):
        octavo.quantize_folder(source, out, qconfig=FOUR, weights=[octavo.GPTQ()])
    rules = octavo.QConfigMapping().set_module_name("model.layers.7", FOUR)
    with pytest.raises(PlanError, match=r"model\.layers\.7"):
        octavo.quantize_folder(source, out, qconfig=rules)
    with pytest.raises(PlanError, match="nothing"):
        octavo.quantize_folder(source, out, only=lambda path, module: False)
    odd = octavo.weight_only_qconfig(4, group_size=24)
    with pytest.raises(PlanError, match="group_size 24 does not divide"):
        octavo.quantize_folder(source, out, qconfig=odd)
    assert not out.exists()


def test_layers_that_no_group_fits_are_told(tmp_path: Path) -> None:
    source = saved(tmp_path / "float", intermediate_size=48)
    with pytest.warns(octavo.OctavoWarning, match=r"down_proj.*group_size 32 does not divide"):
        octavo.quantize_folder(source, tmp_path / "q", qconfig=FOUR)
    assert isinstance(loaded(tmp_path / "q").model.layers[0].mlp.down_proj, torch.nn.Linear)


FRESH = """
import sys, threading
sys.path.append(sys.argv[3])
import torchvision_shim, octavo
from octavo.model.language.source_folder import SourceFolder

def kilobytes():  # without the pages of mapped files: the system takes those back as it likes
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

four = octavo.weight_only_qconfig(4, group_size=32)
octavo.quantize_folder(sys.argv[1], sys.argv[2], qconfig=four)  # imports what it needs
seen, over = [kilobytes()], threading.Event()

def watch():
    while not over.wait(0.002):
        seen.append(kilobytes())

watcher = threading.Thread(target=watch)
watcher.start()
octavo.quantize_folder(sys.argv[4], sys.argv[5], qconfig=four)
over.set()
watcher.join()
print(max(seen) - seen[0])
"""


@pytest.mark.sweep
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_holds_a_block_at_a_time(tmp_path: Path) -> None:
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16}
    source = tmp_path / "float"
    built("LlamaForCausalLM", **{**SIZES, **wide}).save_pretrained(source, max_shard_size="50MB")
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    assert size > 230e6
    small, tests = saved(tmp_path / "small"), Path(__file__).parents[2]
    folders = (small, tmp_path / "small q", tests, source, tmp_path / "q")
    arguments = [str(folder) for folder in folders]
    command = [sys.executable, "-c", FRESH, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert 1024 * int(done.stdout) < size / 2
