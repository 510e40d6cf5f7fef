"""Joining modules into flat files: what the files keep, in which order, and what is refused."""

import ast
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports

import flashvid_hf
from flashvid_hf import FlashVIDQwen3VLProcessor
from flashvid_hf.families import FAMILIES
from flashvid_hf.publishing.bundle import BundleError, Place, bundle, read_module
from flashvid_hf.publishing.published_code import PACKAGE, published_files, write_code

SECTION = re.compile(r"^# (\S+\.py) -+$", re.MULTILINE)
PLACES = {"core": Place("The core.", ("maths.*",)), "model": Place("The model.", ("models.*",))}


def join(folder: Path, places=PLACES, entry: str = "models.model", **modules: str) -> dict[str, str]:
    """The bundle of a package with these modules; `maths__sums` is `maths/sums.py`."""
    package = folder / "package"
    for name, text in modules.items():
        path = package / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return bundle(package, [entry], places, "package 1.0")


def test_modules_follow_what_they_need(tmp_path):
    files = join(
        tmp_path,
        maths__a='"""Uses b."""\n\nimport math\n\nfrom .b import HALF\n\n# Why.\nPI = math.pi * 2 * HALF  # as it is\n',
        maths__b='"""A half."""\n\nHALF = 0.5\n\n__all__ = ["HALF"]\n',
        models__model="from ..maths.a import PI\n\n\ndef area(r):\n    return PI * r * r\n",
        models__other="raise SystemExit\n",
    )
    rule = "# {} ".format
    assert list(files) == ["core.py", "model.py"]
    assert files["core.py"] == (
        '"""The core.\n\nGenerated from package 1.0: do not edit. The sections are its modules:\n\n'
        '    maths/b.py\n    maths/a.py\n"""\n\nimport math\n\n'
        + rule("maths/b.py").ljust(120, "-")
        + '\n\n"""A half."""\n\nHALF = 0.5\n\n\n'
        + rule("maths/a.py").ljust(120, "-")
        + '\n\n"""Uses b."""\n\n# Why.\nPI = math.pi * 2 * HALF  # as it is\n\n\n__all__ = [\n    "HALF",\n]\n'
    )
    assert "\nfrom .core import PI\n" in files["model.py"] and "other" not in files["model.py"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    names: dict = {}
    exec(compile(files["core.py"], "core.py", "exec"), names)
    assert names["PI"] == pytest.approx(3.14159, abs=1e-5)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            {"maths__a": "def f(): pass\n", "maths__b": "from .a import f\n\n\ndef g(): pass\n\n\nf = 1\n"},
            "`f` means .* rename one",
        ),
        ({"maths__a": "_x = 1\n", "maths__b": "from .a import _x as y\n"}, "under their own names"),
        ({"maths__a": "_x = 1\ny = _x\n", "maths__b": "from .a import y\n\n_x = 2\n"}, "`_x` means maths.b _x"),
        ({"maths__a": "import math as m\nx = m.pi\n", "maths__b": "from .a import x\n\nm = x\n"}, "`m` means"),
        ({"maths__a": "sum = 1\n", "maths__b": "from .a import sum\n"}, "defines `sum`, a name of Python's own"),
        ({"maths__a": "from .b import y\n\nx = 1\n", "maths__b": "from .a import x\n\ny = 1\n"}, "import each other"),
        (
            {
                "maths__b": "from ..models.model import z\n\ny = 1\n",
                "models__model": "from ..maths.b import y\n\nz = 1\n",
            },
            "files import each other: core -> model -> core",
        ),
        ({"maths__a": "x = 1\n", "maths__b": "def f():\n    from .a import x\n    return x\n"}, "below the top level"),
        ({"maths__a": "x = 1\n", "maths__b": "from . import a\n"}, "import names"),
        ({"maths__a": "x = 1\n", "maths__b": "from .a import *\n"}, "import names"),
        ({"maths__b": "from __future__ import annotations\n"}, "import names"),
        ({"maths__a": "x = 1\n", "maths__b": "from .a import x  # a reason\n"}, "comment on this import would be lost"),
        ({"maths__b": "from .missing import x\n"}, "`maths.missing` is no module"),
        ({"maths__b": "from ..tools.a import x\n", "tools__a": "x = 1\n"}, "belongs to no published file"),
        ({"maths__b": 'def f():\n    """\n    from .else import x\n    """\n'}, "takes for a relative import"),
    ],
)
def test_what_would_change_the_meaning_is_refused(tmp_path, modules, message):
    modules = {"models__model": "import maths\n" if "models__model" not in modules else "", **modules}
    entry = "models.model" if modules["models__model"].startswith("from") else "maths.b"
    with pytest.raises(BundleError, match=message):
        join(tmp_path, entry=entry, **modules)


def test_names_for_types_stay_within_their_file(tmp_path):
    types = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from .a import X\n\n\ndef f(x: 'X'): pass\n"
    files = join(
        tmp_path, entry="maths.a", maths__a="from .b import f\n\n\nclass X: pass\n\n\nf(X())\n", maths__b=types
    )
    assert "TYPE_CHECKING" not in files["core.py"]
    with pytest.raises(BundleError, match="imports `X` for types only"):
        join(tmp_path / "far", entry="models.b", maths__a="class X: pass\n", models__b=types.replace(".a", "..maths.a"))


def find_definitions(text: str) -> dict[str, str]:
    """The text of the functions and classes at the top level of a module, with their decorators."""
    lines, found = text.splitlines(), {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert node.name not in found
            first = min(above.lineno for above in (node, *node.decorator_list))
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.config.model_type)
def test_every_definition_of_a_family_is_published_as_it_is(family):
    """Functions, classes and constants equal those of the package in every character; none is lost or repeated."""
    published: dict[str, str] = {}
    for text in published_files(family).values():
        found = find_definitions(text)
        assert not found.keys() & published.keys()
        published |= found
    sources: dict[str, str] = {}
    sections = SECTION.findall("".join(published_files(family).values()))
    assert len(sections) == len(set(sections)) > 30
    for section in sections:
        text = (PACKAGE / section).read_text()
        sources |= find_definitions(text)
        body = read_module(PACKAGE, section.removesuffix(".py").replace("/", ".")).body
        comments = [line for line in text.splitlines() if line.strip().startswith("#")]
        assert all(line in body for line in comments)
    assert published == sources


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.config.model_type)
def test_a_folder_has_at_most_six_files(family, tmp_path):
    files = published_files(family)
    assert len(files) <= 6
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        tree = ast.parse(text)
        real = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
        assert set(get_relative_imports(tmp_path / name)) == real <= {other.removesuffix(".py") for other in files}


def test_files_without_a_family_are_the_same_in_all():
    for name in ("compression_flashvid.py", "pipeline_flashvid.py"):
        assert len({published_files(family)[name] for family in FAMILIES}) == 1


def test_rivals_are_not_published():
    names = set(flashvid_hf.available_methods()) - {"flashvid"}
    assert len(names) > 10
    for text in published_files(FAMILIES[0]).values():
        assert {section for section in SECTION.findall(text) if section.startswith("methods/")} <= {
            "methods/compression_method.py",
            "methods/flashvid.py",
            "methods/registry.py",
        }


def test_the_text_does_not_depend_on_the_process():
    program = (
        "import hashlib, flashvid_hf\nfrom flashvid_hf.publishing.published_code import published_files\n"
        "texts = [t for f in flashvid_hf.FAMILIES for t in published_files(f).values()]\n"
        "print(hashlib.sha256(''.join(texts).encode()).hexdigest())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": str(PACKAGE.parent), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    texts = [text for family in FAMILIES for text in published_files(family).values()]
    assert ended.stdout.strip() == hashlib.sha256("".join(texts).encode()).hexdigest()


def test_code_of_a_processor_is_written_with_what_it_imports(tmp_path):
    write_code(FlashVIDQwen3VLProcessor, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "compression_flashvid.py",
        "configuration_flashvid_qwen3_vl.py",
        "pipeline_flashvid.py",
        "processing_flashvid_qwen3_vl.py",
    ]
