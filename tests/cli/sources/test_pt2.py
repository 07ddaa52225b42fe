from __future__ import annotations

import copy
import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.cli.sources.pt2 import _is_arithmetic, load_pt2
from octavo.errors import InputError


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.offset = torch.randn(4)  # a constant in the file, not a parameter

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu().reshape(x.shape[0], 4, -1)
        return y.mean(2) + self.offset


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    torch.manual_seed(0)
    model = Model().eval()
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (torch.randn(2, 1, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path, model


def test_the_model_comes_back(exported: tuple[Path, nn.Module]) -> None:
    path, model = exported
    loaded = load_pt2(path)
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(loaded(x), model(x))
    assert not loaded.training


def test_it_is_a_module_like_others(exported: tuple[Path, nn.Module]) -> None:
    """Mode, copy and dtype are what quantize and compare need of a model."""
    loaded = load_pt2(exported[0])
    loaded.train()
    loaded.eval()
    half = copy.deepcopy(loaded).to(torch.bfloat16)
    assert half(torch.randn(3, 1, 8, 8).bfloat16()).dtype is torch.bfloat16
    assert loaded.get_parameter("conv.weight").dtype is torch.float32


def test_it_is_quantized_and_compared(exported: tuple[Path, nn.Module]) -> None:
    loaded, batches = load_pt2(exported[0]), [torch.randn(8, 1, 8, 8) for _ in range(2)]
    q = octavo.quantize(loaded, calibration=batches, target=octavo.host_target(), progress=False)
    from octavo.measuring.comparison import compare

    result = compare(loaded, q, batches, rounds=1, progress=False)
    assert result["int8"].sqnr_db > 20
    assert result["bf16"].error is None


def test_the_exported_names_stay(exported: tuple[Path, nn.Module]) -> None:
    loaded = load_pt2(exported[0])
    q = octavo.quantize(loaded, calibration=[torch.randn(8, 1, 8, 8)], progress=False)
    assert "conv.weight" in q.plan.tensors


Change = Callable[[dict[str, bytes]], object]


def altered(path: Path, target: Path, change: Change) -> Path:
    """A copy of the archive; ``change`` may alter its files, named without the archive's folder."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = names[0].partition("/")[0]
        files = {name.partition("/")[2]: archive.read(name) for name in names}
    change(files)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{root}/{name}", content)
    return target


def in_json(name: str, change: Callable[[Any], object]) -> Change:
    def alter(files: dict[str, bytes]) -> None:
        data = json.loads(files[name])
        change(data)
        files[name] = json.dumps(data).encode()

    return alter


def pickled(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save((Evil(path),), buffer)
    return buffer.getvalue()


MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


def _expression(data: Any, text: str) -> None:
    sizes = data["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = text


def hostile(run: Path) -> dict[str, Change]:
    """Ways to have code run by torch.export.load, and things near to them."""
    code = f"__import__('pathlib').Path({str(run)!r}).touch()"
    return {
        "sample inputs": lambda f: f.update({"data/sample_inputs/model.pt": pickled(run)}),
        "legacy weights": lambda f: f.update({"data/weights/model.pt": pickled(run)}),
        "legacy constants": lambda f: f.update({"data/constants/model.pt": pickled(run)}),
        "opaque object": lambda f: f.update({"data/constants/opaque_obj_0": pickled(run)}),
        "custom object": lambda f: f.update({"data/constants/custom_obj_0": pickled(run)}),
        "compiled code": lambda f: f.update({"data/aotinductor/model/model.so": b"\x7fELF"}),
        "pickled weight": in_json(
            WEIGHTS, lambda d: d["config"]["conv.weight"].update(use_pickle=True)
        ),
        "expression": in_json(MODEL, lambda d: _expression(d, code)),
        "expression in a symbol": in_json(MODEL, lambda d: _expression(d, f'S("{code}")')),
        "operator": in_json(
            MODEL,
            lambda d: d["graph_module"]["graph"]["nodes"][0].update(target="torch.os.system"),
        ),
        "argument name": in_json(
            MODEL,
            lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
                forward_arg_names=[f"x={code}"]
            ),
        ),
        "node name": in_json(
            MODEL, lambda d: d["graph_module"]["graph"]["nodes"][0].update(name=f"a;{code}")
        ),
        "structure": in_json(
            MODEL,
            lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
                out_spec='[1, {"type": "evil.Type", "context": "null", "children_spec": []}]'
            ),
        ),
    }


@pytest.mark.parametrize("kind", sorted(hostile(Path())))
def test_a_file_that_could_run_code_is_refused(
    exported: tuple[Path, nn.Module], tmp_path: Path, kind: str
) -> None:
    run = tmp_path / "run"
    path = altered(exported[0], tmp_path / "evil.pt2", hostile(run)[kind])
    with pytest.raises(InputError, match=r"evil\.pt2 is refused: it (holds|has) .* run code"):
        load_pt2(path)
    assert not run.exists()


def entries(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def write(path: Path, files: list[tuple[str, bytes]], packed: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packed) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, content in files:
            archive.writestr(name, content)
    return path


def test_archives_that_say_two_things_are_refused(
    exported: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    """Python's reader takes the last entry of a name, torch's another one."""
    run = tmp_path / "run"
    good = entries(exported[0])
    evil = entries(altered(exported[0], tmp_path / "e.pt2", hostile(run)["expression"]))
    (model,) = (entry for entry in evil if entry[0].endswith(MODEL))
    plain = next(entry for entry in good if entry[0].endswith(MODEL))
    others = [entry for entry in good if entry is not plain]
    folder = model[0].partition("/")[0]
    for files in (
        [*others, plain, model, plain],
        [*others, model, plain],
        [*good, (f"other/{MODEL}", model[1])],
        [(f"other/{MODEL}", model[1]), *good],
        [*good, (f"{folder.upper()}/{MODEL}", model[1])],
        [*good, (f"/{folder}/{MODEL}", model[1])],
    ):
        path = write(tmp_path / "evil.pt2", files)
        with pytest.raises(InputError, match=r"evil\.pt2 is refused: its entry .* is there twice"):
            load_pt2(path)
    for name in ("../canary", MODEL.upper(), f"./{MODEL}", f"{MODEL}/"):
        path = write(tmp_path / "evil.pt2", [*good, (f"{folder}/{name}", model[1])])
        with pytest.raises(InputError, match=r"evil\.pt2 is refused: it holds"):
            load_pt2(path)
    assert not run.exists()


def test_torch_reads_what_was_checked(exported: tuple[Path, nn.Module], tmp_path: Path) -> None:
    """What stands twice inside of a JSON file, or around the archive, does not get to torch."""
    run = tmp_path / "run"
    files = entries(exported[0])
    evil = dict(entries(altered(exported[0], tmp_path / "e.pt2", hostile(run)["expression"])))
    at = next(index for index, (name, _) in enumerate(files) if name.endswith(MODEL))
    name, content = files[at]
    twice = b'{"graph_module": ' + json.dumps(json.loads(evil[name])["graph_module"]).encode()
    files[at] = (name, twice + b", " + content.lstrip()[1:])
    path = write(tmp_path / "twice.pt2", files)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load_pt2(path)(x), exported[1](x))
    path.write_bytes((tmp_path / "e.pt2").read_bytes() + exported[0].read_bytes())
    assert torch.equal(load_pt2(path)(x), exported[1](x))
    assert not run.exists()


def test_an_archive_that_unpacks_to_more_than_it_has(
    exported: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    files = [*entries(exported[0]), ("archive/data/weights/weight_99", bytes(10**7))]
    path = write(tmp_path / "bomb.pt2", files, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"bomb\.pt2 is refused: it unpacks to more bytes"):
        load_pt2(path)


def test_json_that_is_nested_deeply(exported: tuple[Path, nn.Module], tmp_path: Path) -> None:
    for depth in (300, 900, 100_000):
        deep = b"[" * depth + b"]" * depth
        path = altered(exported[0], tmp_path / "deep.pt2", lambda f, d=deep: f.update({WEIGHTS: d}))
        with pytest.raises(InputError):
            load_pt2(path)


def test_a_copy_with_nothing_changed_is_read(
    exported: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path = altered(exported[0], tmp_path / "same.pt2", lambda files: None)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(load_pt2(path)(x), exported[1](x))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Symbol('s77', positive=True, integer=True)", True),
        ("Min(Integer(768), Mul(Integer(768), Symbol('s77', integer=True)))", True),
        ("2*s77 + 1 >= s3//4", True),
        ("-1.5", True),
        ("exec(1)", False),
        ("S('x')", False),
        ("Function('f')", False),
        ("().__class__", False),
        ("s77.args", False),
        ("s77[0]", False),
        ("Symbol('a b')", False),
        ("Symbol(*s77)", False),
        ("lambda: 1", False),
        ("[s1 for s1 in s2]", False),
        ("f'{s77}'", False),
        ("b'x'", False),
        ("1 +", False),
        ("", False),
    ],
)
def test_expressions(text: str, expected: bool) -> None:
    assert _is_arithmetic(text) is expected


def test_files_that_are_no_export(exported: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    for content in (b"", b"x" * 50, exported[0].read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"as a torch\.export file|or is cut off"):
            load_pt2(path)
    altered(exported[0], path, lambda files: files.pop(MODEL))
    with pytest.raises(InputError, match="or is cut off"):
        load_pt2(path)
    altered(exported[0], path, lambda files: files.update({"archive_version": b"99"}))
    with pytest.raises(InputError, match=r"torch\.export\.load cannot read"):
        load_pt2(path)
