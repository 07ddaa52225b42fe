"""What becomes of sources; each program is small, and stands for one way to write an import."""

from __future__ import annotations

import textwrap
import warnings

import pytest

from octavo.compat.migrate import FileMigration
from octavo.compat.migrate.rewrite import rewrite


def moved(text: str) -> FileMigration:
    source = textwrap.dedent(text).lstrip("\n")
    file, new = rewrite("a.py", source.encode())
    assert file.before == source
    assert new.decode() == file.after
    again, _ = rewrite("a.py", new)
    assert not again.changed, "a second run changes something"
    assert {(n.name.rpartition(".")[2], n.text) for n in again.kept} == {
        (n.name.rpartition(".")[2], n.text) for n in file.kept
    }
    return file


def after(text: str) -> str:
    file = moved(text)
    assert not file.kept
    return file.after


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import torch.quantization as tq", "import octavo.compat.quantization as tq"),
        ("from torch import quantization", "from octavo.compat import quantization"),
        ("from torch.ao import quantization as q", "from octavo.compat import quantization as q"),
        (
            "from torch.ao.quantization import QConfig, prepare as p  # why",
            "from octavo.compat.quantization import QConfig, prepare as p  # why",
        ),
        (
            "from torch.quantization.observer import MinMaxObserver",
            "from octavo.compat.quantization import MinMaxObserver",
        ),
        (
            "from torch.quantization.fuse_modules import fuse_modules",
            "from octavo.compat.quantization import fuse_modules",
        ),
        (
            "from torch.quantization import quantize_fx",
            "from octavo.compat import quantize_fx",
        ),
        (
            "import torch.ao.quantization.quantize_fx as fx",
            "import octavo.compat.quantize_fx as fx",
        ),
        (
            "import torch.quantization._numeric_suite as ns",
            "import octavo.compat.numeric_suite as ns",
        ),
        (
            "from torch.ao.ns import _numeric_suite",
            "from octavo.compat import numeric_suite as _numeric_suite",
        ),
        (
            "from torch.nn.quantized import FloatFunctional",
            "from octavo.compat.quantization import FloatFunctional",
        ),
        (
            "from tinynn.graph.quantization.quantizer import QATQuantizer",
            "from octavo.compat.tinynn import QATQuantizer",
        ),
        ("import os, torch.quantization as q", "import os, octavo.compat.quantization as q"),
        (
            "if True: from torch.quantization import prepare; prepare",
            "if True: from octavo.compat.quantization import prepare; prepare",
        ),
        ("import torch.nn as nn; nn.Linear", "import torch.nn as nn; nn.Linear"),
        ("from .quantization import prepare", "from .quantization import prepare"),
    ],
)
def test_one_import(old: str, new: str) -> None:
    assert after(old + "\n") == new + "\n"


def test_names_of_one_import_go_to_different_places() -> None:
    file = moved("""
        from torch.ao.quantization import (
            QConfigMapping as Mapping,  # the rules
            quantize_fx,
            fuse_modules,
            backend_config,  # of no use
        )
    """)
    assert file.after == textwrap.dedent("""
        from octavo.compat.quantization import (
            QConfigMapping as Mapping,  # the rules
            fuse_modules,
        )
        from octavo.compat import (
            quantize_fx,
        )
        from torch.ao.quantization import (
            backend_config,  # of no use
        )
    """).lstrip("\n")
    (note,) = file.kept
    assert (note.line, note.name) == (5, "torch.ao.quantization.backend_config")
    assert "target=" in note.text


def test_names_on_one_line_lose_the_brackets_they_need_no_more() -> None:
    text = "from torch.quantization import (prepare, quantize_fx)\n"
    assert after(text) == (
        "from octavo.compat.quantization import prepare\nfrom octavo.compat import quantize_fx\n"
    )


def test_chains_after_a_plain_import() -> None:
    assert after("""
        import os
        import torch
        import torch.nn as nn

        class Net(nn.Module):
            def __init__(self):
                self.quant = torch.quantization.QuantStub()  # here
                self.add = nn.quantized.FloatFunctional()

        obs = torch.ao.quantization.observer.MinMaxObserver.with_args(dtype=torch.qint8)
        m = torch.ao.quantization.quantize_fx.prepare_fx(m, {})
    """) == textwrap.dedent("""
        import os
        import torch
        import octavo.compat.quantization
        import octavo.compat.quantize_fx
        import torch.nn as nn

        class Net(nn.Module):
            def __init__(self):
                self.quant = octavo.compat.quantization.QuantStub()  # here
                self.add = octavo.compat.quantization.FloatFunctional()

        obs = octavo.compat.quantization.MinMaxObserver.with_args(dtype=torch.qint8)
        m = octavo.compat.quantize_fx.prepare_fx(m, {})
    """).lstrip("\n")


def test_torch_stays_bound_where_only_a_moved_import_bound_it() -> None:
    assert after("""
        '''Doc.'''
        import torch.quantization
        q = torch.quantization.convert(torch.rand(1))
    """) == textwrap.dedent("""
        '''Doc.'''
        import octavo.compat.quantization
        import torch
        q = octavo.compat.quantization.convert(torch.rand(1))
    """).lstrip("\n")


def test_aliases_are_followed() -> None:
    assert after("""
        import torch.ao.quantization as tq
        a = tq.observer.HistogramObserver
        b = tq.quantize_fx.convert_fx
        c = tq.prepare
    """) == textwrap.dedent("""
        import octavo.compat.quantization as tq
        import octavo.compat.quantize_fx
        a = tq.HistogramObserver
        b = octavo.compat.quantize_fx.convert_fx
        c = tq.prepare
    """).lstrip("\n")


def test_what_only_looks_like_an_old_name_stays() -> None:
    text = """
        import torch

        def f(torch):
            return torch.quantization.prepare

        class A:
            def g(self):
                return self.torch.quantization.prepare
    """
    assert after(text) == textwrap.dedent(text).lstrip("\n")


def test_either_import_of_a_fallback_is_moved() -> None:
    assert after("""
        try:
            from torch.ao import quantization as q
        except ImportError:
            from torch import quantization as q
        q.convert(m)
    """) == textwrap.dedent("""
        try:
            from octavo.compat import quantization as q
        except ImportError:
            from octavo.compat import quantization as q
        q.convert(m)
    """).lstrip("\n")


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("from torch.quantization import *", "torch.quantization.*", "import those in use"),
        ("import torchao\ntorchao.quantize_", "torchao.quantize_", "weight_only_qconfig"),
        ("import torch\ntorch.ops.quantized.add(a)", "torch.ops.quantized.add", "float operation"),
        ("import torch.nn.quantized as q\nq.Linear", "torch.nn.quantized.Linear", "float layer"),
        (
            "from torch.ao.quantization.quantize_pt2e import prepare_pt2e",
            "torch.ao.quantization.quantize_pt2e.prepare_pt2e",
            "octavo.quantize(model, calibration=loader)",
        ),
        (
            "from torch.ao.quantization.backend_config import BackendConfig",
            "torch.ao.quantization.backend_config.BackendConfig",
            "target=",
        ),
        ("import torch\ntorch.quantization.nothing", "torch.quantization.nothing", "no such name"),
        (
            "from torch.quantization.quantize_fx import prepare_fx\n"
            "prepare_fx(m, {}, backend_config=b)",
            "torch.quantization.quantize_fx.prepare_fx(backend_config=)",
            "target=",
        ),
        ("patch('torch.quantization.prepare')", "torch.quantization.prepare", "by hand"),
        ("import torchvision\ntorchvision.models.quantization.resnet18()", "", "as it is"),
        ("from tinynn.converter import Other", "tinynn.converter", "octavo.export_tflite"),
    ],
)
def test_what_cannot_be_moved(text: str, name: str, reason: str) -> None:
    (note,) = moved(text + "\n").kept
    assert note.name.startswith(name)
    assert note.line == len(text.splitlines())
    assert reason in note.text


def test_an_import_that_nothing_uses_any_more_is_a_remark() -> None:
    file = moved("import torch\nimport torch.nn.quantized\ntorch.nn.quantized.FloatFunctional()\n")
    assert not file.kept
    assert any(n.line == 2 and "take it out" in n.text for n in file.remarks)


def test_better_calls_are_said_once_a_file() -> None:
    file = moved("""
        import torch
        from torch.quantization import prepare, fuse_modules
        torch.backends.quantized.engine = "qnnpack"
        prepare(a)
        prepare(b)
        torch.jit.script(b)
    """)
    assert [(n.line, n.name) for n in file.remarks] == [
        (3, "torch.backends.quantized.engine"),
        (4, "torch.quantization.prepare"),
        (6, "torch.jit.script"),
    ]
    assert not moved("import torch\ntorch.jit.script(b)\n").remarks


@pytest.mark.parametrize(
    ("source", "line", "name"),
    [
        (b"import torch.quantization\nx = (\n", 3, "syntax error"),
        (b"import torch.quantization\nprint 'x'\n", 2, "syntax error"),
        ("import torch.quantization # \xe9".encode("latin-1"), 1, "not readable as text"),
    ],
)
def test_a_file_that_cannot_be_parsed(source: bytes, line: int, name: str) -> None:
    file, new = rewrite("a.py", source)
    assert new == source
    assert not file.changed
    assert abs(file.kept[0].line - line) <= 1
    assert file.kept[0].name == name


def test_encoding_and_line_ends_stay() -> None:
    source = "# coding: latin-1\r\nfrom torch.quantization import prepare  # \xe9\r\n"
    _, new = rewrite("a.py", source.encode("latin-1"))
    assert new == source.replace("torch.q", "octavo.compat.q").encode("latin-1")


def test_old_names_that_no_import_binds_are_listed() -> None:
    file = moved(
        """
        qconfig = torch.quantization.get_default_qconfig("x86")
        def f(torch):
            return torch.quantization.prepare, self.torch.quantization.prepare
        """
    )
    assert [(n.line, n.name) for n in file.kept] == [(1, "torch.quantization.get_default_qconfig")]
    assert file.kept[0].text == "nothing here binds 'torch': import it"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            """
            try:
                import torch
            except ImportError:
                torch = None
            def f(m):
                return torch.quantization.prepare(m)
            """,
            """
            try:
                import torch
                import octavo.compat.quantization
            except ImportError:
                torch = None
            def f(m):
                return octavo.compat.quantization.prepare(m)
            """,
        ),
        (
            """
            import os
            def f(m):
                import torch  # late
                return torch.quantization.prepare(m)
            """,
            """
            import os
            def f(m):
                import torch  # late
                import octavo.compat.quantization
                return octavo.compat.quantization.prepare(m)
            """,
        ),
        (
            """
            def f():
                import torch.quantization
                return torch.quantization.prepare(torch.ones(1))
            def g():
                import torch
            """,
            """
            def f():
                import octavo.compat.quantization
                import torch
                return octavo.compat.quantization.prepare(torch.ones(1))
            def g():
                import torch
            """,
        ),
        (
            """
            try:
                import torch.quantization
            except ImportError: pass
            x = torch.quantization.prepare, torch.ones
            """,
            """
            try:
                import octavo.compat.quantization
                import torch
            except ImportError: pass
            x = octavo.compat.quantization.prepare, torch.ones
            """,
        ),
        (
            """
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from torch import nn
            def f(x: nn.quantized.FloatFunctional): pass
            """,
            """
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from torch import nn
                import octavo.compat.quantization
            def f(x: octavo.compat.quantization.FloatFunctional): pass
            """,
        ),
        (
            "\nif a: import torch; x = torch.quantization.prepare\n",
            "\nif a: import torch; import octavo.compat.quantization; "
            "x = octavo.compat.quantization.prepare\n",
        ),
        (
            """
            import torch
            def f():
                import torch
                return torch.quantization.prepare
            x = torch.quantization.convert
            """,
            """
            import torch
            import octavo.compat.quantization
            def f():
                import torch
                import octavo.compat.quantization
                return octavo.compat.quantization.prepare
            x = octavo.compat.quantization.convert
            """,
        ),
    ],
)
def test_an_import_is_added_where_torch_is_imported(old: str, new: str) -> None:
    assert after(old) == textwrap.dedent(new).lstrip("\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "torch = None\ndef load():\n    global torch\n    import torch\n"
            "x = torch.quantization.prepare\n",
            "a function imports 'torch' as a global name",
        ),
        (
            "if a:\n    import torch\nelse:\n    import stub as torch\n"
            "x = torch.quantization.prepare\n",
            "it may be stub.quantization.prepare as well",
        ),
    ],
)
def test_a_name_that_is_not_always_the_old_one_is_listed(text: str, reason: str) -> None:
    file = moved(text)
    assert not file.changed
    (note,) = file.kept
    assert note.line == 5
    assert reason in note.text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "(torch  # why\n     .quantization  # what for\n     .quantize_fx.prepare_fx)(m)",
            "(octavo  # why\n     .compat  # what for\n     .quantize_fx.prepare_fx)(m)",
        ),
        (
            "(torch  # a\n .ao  # b\n .quantization.observer  # c\n .MinMaxObserver)",
            "(octavo  # b\n# a\n .compat.quantization  # c\n .MinMaxObserver)",
        ),
        (
            "(torch.ao  # a\n).quantization.prepare",
            "(octavo\n# a\n.compat.quantization.prepare)",
        ),
    ],
)
def test_comments_inside_a_dotted_name_stay(old: str, new: str) -> None:
    text = after(f"import torch\nx = {old}\n")
    assert text == f"import torch\n{text.splitlines()[1]}\nx = {new}\n"


@pytest.mark.parametrize(
    "form", ["{0}\r{1}\r", "{0}\r{1}\r\r", "\f{0}\r\n{1}\r\n\r", "{0}\n{1}", "\ufeff{0}\n{1}\n"]
)
def test_the_ends_of_a_file_stay(form: str) -> None:
    old, rest = "from torch.quantization import prepare", "x = 1"
    file, new = rewrite("a.py", form.format(old, rest).encode())
    expected = form.format(old.replace("torch", "octavo.compat"), rest)
    assert new.decode() == expected
    assert file.after == expected.lstrip("\ufeff")
    assert file.changed_lines == 1


def test_an_added_line_ends_as_the_one_before() -> None:
    """Though the first line end in the file, by which libcst goes, is another one."""
    source = "import torch\nx = '''\r'''\ny = torch.quantization.prepare\n"
    assert "import torch\nimport octavo.compat.quantization\nx" in after(source)


_DEEP = {
    "branches": "if a: pass\n" + "elif b: pass\n" * 400,
    "sum": "x = 1" + " + 1" * 3000,
    "calls": "x = a" + ".b()" * 3000,
    "brackets": "x = " + "(" * 3000 + "1" + ")" * 3000,
    "brackets behind an error": "x = = 2\ny = " + "[" * 5000,
    "minus": "x = " + "-" * 50_000 + "1",
    "and": "x = 1" + " and 1" * 30_000,
    "lambda": "x = " + "lambda: " * 30_000 + "1",
}


@pytest.mark.parametrize("text", _DEEP.values(), ids=_DEEP)
def test_what_nests_too_deep_is_listed(text: str) -> None:
    """libcst ends the process at some of these, or runs into Python's limit."""
    source = f"from torch.quantization import prepare\n{text}\n".encode()
    file, new = rewrite("a.py", source)
    assert (new, file.changed) == (source, False)
    (note,) = file.kept
    assert note.name in ("cannot be read", "syntax error")


def test_warnings_about_a_source_are_not_ours() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert after("from torch.quantization import prepare\nx = '\\d'\n").startswith("from oct")
