from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import octavo_command
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

import octavo
from octavo.cli.demo import demo, phones
from octavo.cli.demo.digits import Digits, load_digits
from octavo.measuring.cold_start import ColdStart
from octavo.runtimes import timing

pytestmark = pytest.mark.usefixtures("here")

MODELS = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
def mean_score(outputs, labels):
    return float(outputs.mean())
def batches():
    import torch
    return [torch.rand(4, 1, 8, 8) for _ in range(3)]
def other():
    return nn.Linear(2, 2)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, data, a .pt2 file and an artifact made by the command."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "my_cli_models.py").write_text(MODELS)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    save_file(model.state_dict(), folder / "w.safetensors")
    torch.save(model.state_dict(), folder / "w.pth")
    images = torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        labels = model(images).argmax(1)
    np.savez(folder / "data.npz", images=images.numpy(), labels=labels.numpy())
    save_file({"x": images, "y": labels}, folder / "data.safetensors")
    program = torch.export.export(
        model, (images[:2],), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    torch.export.save(program, folder / "model.pt2")
    return folder


@pytest.fixture(scope="module")
def artifact(prepared: Path) -> str:
    path = str(prepared / "model.octavo")
    before = os.getcwd()
    os.chdir(prepared)
    try:
        answer = octavo_command(
            *("quantize", "my_cli_models:build", "--weights", "w.safetensors"),
            *("--calibration", "data.npz", "-o", path),
        )
    finally:
        os.chdir(before)
    assert answer.code == 0, answer.err
    return path


def test_quantize_writes_a_file_that_loads(artifact: str, here: Path) -> None:
    q = octavo.load(artifact)
    assert q.target == octavo.host_target()
    assert q(torch.rand(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize(
    "arguments",
    [
        ("my_cli_models:build", "--weights", "w.pth", "--calibration", "data.safetensors"),
        ("my_cli_models:build", "--calibration", "my_cli_models:batches"),
        ("model.pt2", "--calibration", "data.npz"),
    ],
)
def test_all_kinds_of_models_and_data(arguments: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "m.octavo"
    answer = octavo_command("quantize", *arguments, "-o", str(path))
    assert answer.code == 0, answer.err
    assert "of the multiply-adds in int8" in answer.out
    assert octavo.load(path)(torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_quantize_json_target_and_batches(tmp_path: Path) -> None:
    path = tmp_path / "m.octavo"
    answer = octavo_command(
        *("quantize", "model.pt2", "--calibration", "data.npz", "-o", str(path), "--json"),
        *("--batch-size", "4", "--batches", "3", "--target", "x86-avx2"),
    )
    data = json.loads(answer.out)
    assert (answer.code, answer.err) == (0, "")
    assert (data["file"], data["size_bytes"]) == (str(path), path.stat().st_size)
    assert data["target"] == "x86-avx2"
    assert data["provenance"]["calibration_batches"] == 3


def test_compare_json(artifact: str) -> None:
    answer = octavo_command(
        *("compare", "my_cli_models:build", artifact, "--weights", "w.pth", "--data", "data.npz"),
        *("--rounds", "2", "--threads", "1", "--batch-size", "8", "--json"),
    )
    data = json.loads(answer.out)
    assert (answer.code, answer.err) == (0, "")
    assert data["fp32"]["top1"] == 100.0
    assert data["int8"]["top1"] >= 80.0
    assert data["int8"]["sqnr_db"] > 25
    settings = data["settings"]
    assert (settings["rounds"], settings["threads"], settings["batch_size"]) == (2, 1, 8)


def test_compare_as_table_and_markdown(artifact: str) -> None:
    arguments = ("compare", "model.pt2", artifact, "--data", "data.safetensors", "--rounds", "1")
    table, markdown = octavo_command(*arguments), octavo_command(*arguments, "--markdown")
    for name in ("fp32", "bf16", "int8", "top-1 %", "SQNR dB", "20 samples"):
        assert name in table.out
    assert markdown.out.startswith("| contender | size MB |")


def test_compare_with_runtimes_and_a_metric_of_the_users_own(artifact: str) -> None:
    answer = octavo_command(
        *("compare", "model.pt2", artifact, "--data", "data.npz", "--rounds", "1", "--json"),
        *("--runtimes", "torch, reference", "--metric", "my_cli_models:mean_score"),
    )
    data = json.loads(answer.out)
    assert list(data) == ["fp32", "bf16", "int8 torch", "int8 reference", "settings"]
    assert isinstance(data["int8 reference"]["mean_score"], float)


def test_compare_several_files(artifact: str, tmp_path: Path) -> None:
    other = tmp_path / "other.octavo"
    shutil.copy(artifact, other)
    answer = octavo_command(
        *("compare", "model.pt2", artifact, str(other), "--data", "data.npz", "--rounds", "1"),
        "--json",
    )
    data = json.loads(answer.out)
    assert list(data) == ["fp32", "bf16", Path(artifact).stem, "other", "settings"]
    assert data["other"]["size_bytes"] == data[Path(artifact).stem]["size_bytes"]
    same = tmp_path / Path(artifact).name
    shutil.copy(artifact, same)
    again = octavo_command(
        *("compare", "model.pt2", artifact, str(same), "--data", "data.npz", "--rounds", "1"),
        "--json",
    )
    assert list(json.loads(again.out))[2:4] == [artifact, str(same)]


def test_inspect(artifact: str) -> None:
    short, long = octavo_command("inspect", artifact), octavo_command("inspect", artifact, "--plan")
    assert "of the multiply-adds in int8" in short.out
    assert "0.weight" not in short.out
    assert "0.weight" in long.out
    data = json.loads(octavo_command("inspect", artifact, "--json").out)
    assert data["size_bytes"] == Path(artifact).stat().st_size
    assert data["target"] == octavo.host_target()
    assert data["provenance"]["torch"] == torch.__version__
    assert {tensor["tensor"] for tensor in data["plan"]["tensors"]} >= {"0.weight", "3.weight"}


def test_it_is_a_module_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["octavo", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("octavo", run_name="__main__")
    assert end.value.code == 0
    assert "quantize" in capsys.readouterr().out


@pytest.mark.sweep  # ten seconds; test_demo has a demo of its own
def test_demo_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_digits()
    few = Digits("a few", TensorDataset(*digits.train[:64]), TensorDataset(*digits.test[:32]))
    monkeypatch.setattr(demo, "load_digits", lambda mnist: few)
    monkeypatch.setattr(timing, "MAX_ROUNDS", 1)
    monkeypatch.setattr(phones, "FORMATS", {})
    out = tmp_path / "out"
    answer = octavo_command("demo", "--out", str(out), "--epochs", "1", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert json.loads(answer.out) == json.loads((out / "comparison.json").read_text())


QUANTIZE = ("quantize", "my_cli_models:build", "--calibration", "data.npz", "-o", "out.octavo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "absent.octavo"), "absent.octavo"),
        (("inspect", "w.pth"), "not an Octavo artifact"),
        (("inspect", "w.safetensors"), "not an Octavo artifact"),
        (("quantize", "absent:build", *QUANTIZE[2:]), "cannot import absent"),
        (("quantize", "my_cli_models:biuld", *QUANTIZE[2:]), "did you mean build?"),
        (("quantize", "my_cli_models.py", *QUANTIZE[2:]), "package.module:name"),
        ((*QUANTIZE[:2], *QUANTIZE[4:]), "--calibration: name some data"),
        ((*QUANTIZE[:3], "absent.npz", *QUANTIZE[4:]), "cannot read absent.npz"),
        ((*QUANTIZE, "--weights", "absent.pth"), "cannot read the weights"),
        ((*QUANTIZE, "--target", "abacus"), "unknown target 'abacus'"),
        ((*QUANTIZE[:-1], "w.pth/out.octavo"), "cannot write to w.pth"),
        (("compare", "my_cli_models:other", "MODEL", "--data", "data.npz"), "fails on batch 0"),
        (("compare", "model.pt2", "MODEL", "--data", "data.npz", "--metric", "bleu"), "top5"),
        (("demo", "--out", "out", "--epochs", "0"), "epochs=0"),
        (("demo", "--out", "w.pth/out"), "cannot write to w.pth/out"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_1(
    arguments: tuple[str, ...], message: str, artifact: str
) -> None:
    answer = octavo_command(*(artifact if part == "MODEL" else part for part in arguments))
    assert (answer.code, answer.out.count("epoch")) == (1, 0)
    assert answer.err.startswith("octavo: ")
    assert answer.err.count("\n") == 1
    assert message in answer.err
    assert not Path("out.octavo").exists()


def test_json_mode_keeps_errors_off_standard_output() -> None:
    answer = octavo_command("inspect", "absent.octavo", "--json")
    assert (answer.code, answer.out) == (1, "")
    assert "absent.octavo" in answer.err


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(octavo.OctavoError):
        octavo_command("--debug", "inspect", "absent.octavo")


@pytest.mark.parametrize(
    "arguments",
    [("quantize",), ("inspect",), ("bake",), ("demo",), ("inspect", "a", "--colour"), ("compare",)],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    answer = octavo_command(*arguments)
    assert (answer.code, answer.out) == (2, "")


@pytest.mark.parametrize("command", ["demo", "quantize", "compare", "inspect"])
def test_help_has_an_example(command: str) -> None:
    answer = octavo_command(command, "--help")
    assert answer.code == 0
    assert "Example" in answer.out
    assert f"octavo {command}" in answer.out


def test_general_help_and_version() -> None:
    answer = octavo_command("--help")
    assert answer.code == 0
    for word in ("demo", "quantize", "compare", "inspect", "Exit codes"):
        assert word in answer.out
    assert octavo_command("--version").out.strip() == f"octavo {octavo.__version__}"


def test_what_runs_in_float_is_not_silent(prepared: Path, tmp_path: Path) -> None:
    """x86 needs 8-bit activations; where kernels saturate they run in float, and that is said."""
    path = str(tmp_path / "m.octavo")
    answer = octavo_command(
        *("quantize", "model.pt2", "--calibration", "data.npz", "-o", path, "--target", "x86")
    )
    assert answer.code == 0
    whole = "100 % of the multiply-adds in int8" in answer.out
    assert whole or octavo.host_target() == "x86-avx2"
    assert ("octavo: warning: " in answer.err) == (not whole)


def test_interrupted_it_ends_with_130_and_no_file(tmp_path: Path) -> None:
    """Ctrl-C during the training of the demo."""
    out = tmp_path / "out"
    # The jobs that a script starts in the background ignore the signal.
    command = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command += "from octavo.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", command, "demo", "--out", str(out), "--epochs", "500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "data:" in process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "octavo: interrupted\n"
    assert not out.exists()


def test_modes_and_bits(prepared: Path, tmp_path: Path) -> None:
    sizes = {}
    for name, more in {
        "dynamic": ["--mode", "dynamic"],
        "8": ["--mode", "weight_only"],
        "4": ["--mode", "weight_only", "--bits", "4", "--group-size", "36"],
    }.items():
        file = tmp_path / f"{name}.octavo"
        answer = octavo_command(
            *("quantize", "my_cli_models:build", "--calibration", "my_cli_models:batches"),
            *("-o", str(file), *more),
        )
        assert answer.code == 0, answer.err
        assert octavo.load(file).plan.mode == ("dynamic" if name == "dynamic" else "weight_only")
        sizes[name] = file.stat().st_size
    assert sizes["4"] < sizes["8"]


def test_the_precision_of_what_stays_float(prepared: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.octavo"
    answer = octavo_command(
        *("quantize", "my_cli_models:build", "--calibration", "my_cli_models:batches"),
        *("-o", str(file), "--precision", "auto"),
    )
    assert answer.code == 0, answer.err
    assert octavo.load(file).plan.precision == "auto"


def test_effort(prepared: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.octavo"
    command = ("quantize", "my_cli_models:build", "--calibration", "my_cli_models:batches")
    answer = octavo_command(*command, "-o", str(file), "--effort", "balanced")
    assert answer.code == 0, answer.err
    assert "observer histogram" in answer.err
    assert octavo.load(file).provenance["effort"] == "balanced"
    refused = octavo_command(*command, "-o", str(file), "--effort", "most")
    assert refused.code != 0
    assert "give one of 'fast', 'balanced', 'best'" in refused.err


def test_bits_are_for_weight_only(prepared: Path, tmp_path: Path) -> None:
    answer = octavo_command(
        *("quantize", "my_cli_models:build", "--calibration", "my_cli_models:batches"),
        *("-o", str(tmp_path / "m.octavo"), "--bits", "4"),
    )
    assert answer.code != 0
    assert "--bits and --group-size are for --mode weight_only" in answer.err


def test_pixels_in(prepared: Path, tmp_path: Path) -> None:
    pixels, file = tmp_path / "pixels.npz", tmp_path / "m.octavo"
    np.savez(pixels, images=np.random.randint(0, 256, (6, 1, 8, 8), dtype=np.uint8))
    network = ("my_cli_models:build", "--weights", "w.pth")
    command = ("quantize", *network, "--calibration", str(pixels), "-o", str(file))
    answer = octavo_command(*command, "--input-mean", "0.5", "--input-std", "0.25")
    assert answer.code == 0, answer.err
    q = octavo.load(file)
    assert q.provenance["pixels"] == {"scale": 1 / 255, "mean": [0.5], "std": [0.25]}
    assert q(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 10)
    compared = octavo_command(
        *("compare", *network, str(file), "--data", str(pixels), "--rounds", "1")
    )
    assert compared.code == 0, compared.err
    for arguments, message in (
        (("--input-mean", "0.5,a"), "--input-mean is '0.5,a'; give numbers"),
        (("--input-std", "1,1,1"), "the image has 1 channels"),
        (("--input-scale", "0"), "input_scale is (0.0,); give numbers above zero"),
    ):
        answer = octavo_command(*command, *arguments)
        assert answer.code == 1
        assert message in answer.err


def test_verify(artifact: str) -> None:
    found = octavo_command("verify", artifact, "--runtimes", "torch, onnxruntime, openvino")
    assert found.code == 0
    assert found.out.count("agrees") == 3
    data = json.loads(octavo_command("verify", artifact, "--runtimes", "torch", "--json").out)
    assert data["passed"] is True
    assert octavo_command("verify", artifact, "--runtimes", "nope").code == 1


@pytest.mark.sweep
def test_bench(artifact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = ColdStart(0.5, 10.0)  # tests/measuring/test_bench.py measures real ones
    module = import_module("octavo.measuring.bench")  # octavo.bench itself is the function
    monkeypatch.setattr(module, "cold_start", lambda *args, **options: start)
    options = ("--runtimes", "torch", "--batches", "1,2", "--seconds", "0.1")
    found = octavo_command("bench", artifact, *options)
    assert "int8 torch" in found.out
    assert "fastest at batch 2: " in found.out
    data = json.loads(octavo_command("bench", artifact, *options, "--json").out)
    assert [row["name"] for row in data["rows"]] == ["fp32", "bf16", "int8 torch"]
    assert data["rows"][2]["load_s"] == 0.5
    assert "give numbers, such as 1,8,32" in octavo_command("bench", artifact, "--batches", "a").err
    assert "leave --data out" in octavo_command("bench", artifact, "--data", "x.npz").err


def test_export(artifact: str, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    assert "MB" in octavo_command("export", artifact, "--out", str(out)).out
    assert out.stat().st_size > 0
    refused = octavo_command("export", artifact, "--out", str(out), "--runtime", "nope")
    assert refused.code == 1
    assert "no ONNX dialect" in refused.err
    refused = octavo_command("export", artifact, "--out", str(out), "--full-integer")
    assert refused.code == 1
    assert "--full-integer is for .tflite files" in refused.err
