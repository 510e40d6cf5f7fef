"""The layers of the package: a lower part imports nothing from a higher one, and the tree shows the layers."""

import ast
import sys
from pathlib import Path

import pytest

import flashvid_hf

PACKAGE = Path(flashvid_hf.__file__).parent
FAMILY_FOLDERS = sorted(path.name for path in (PACKAGE / "models").iterdir() if (path / "__init__.py").is_file())
# From the ground up. A part may import parts of lower rows, and modules of itself.
LAYERS = (
    ("compression",),
    ("video", "methods"),
    ("hub",),
    ("models",),
    tuple(f"models/{folder}" for folder in FAMILY_FOLDERS),
    ("families",),
    ("loading", "drop_in", "tracing"),
    ("publishing",),
    ("serving", "__init__", "tiny_models"),
    ("evaluation", "vllm_plugin", "cli_options"),
    ("cli",),
)
FLOOR = {part: floor for floor, parts in enumerate(LAYERS) for part in parts}
# Libraries that a part may import beside the standard library. Other parts may import all that the package requires.
LIBRARIES = {"compression": {"torch"}, "methods": {"torch"}}


def part_of(path: Path) -> str:
    """The part of the package that a file or folder belongs to."""
    relative = path.relative_to(PACKAGE).with_suffix("")
    names = [str(folder) for folder in (relative, *relative.parents)]
    return next(name for name in names if name in FLOOR)


def imports(file: Path) -> list[tuple[int, Path]]:
    """Line and path of everything that a file imports from the package, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:
                below = base / alias.name
                path = below if below.is_dir() or below.with_suffix(".py").is_file() else base
                found.append((node.lineno, path / "__init__" if path == PACKAGE else path))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                if name.partition(".")[0] == PACKAGE.name:
                    _, *rest = name.split(".")
                    found.append((node.lineno, PACKAGE.joinpath(*rest) if rest else PACKAGE / "__init__"))
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_file_has_a_floor():
    assert len(FILES) > 60
    parts = {part_of(file) for file in FILES}
    assert parts == set(FLOOR), "a part of the list has no file, or a file has no part"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_downward(file):
    own = part_of(file)
    for line, target in imports(file):
        part = part_of(target)
        assert part == own or FLOOR[part] < FLOOR[own], f"{file.relative_to(PACKAGE)}:{line} imports {part}"


def test_the_maths_needs_torch_alone():
    for file in FILES:
        allowed = LIBRARIES.get(part_of(file))
        if allowed is None:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{file}: imports {top}"


def test_families_do_not_import_each_other():
    assert {"qwen", "llava"} <= set(FAMILY_FOLDERS)
    for folder in FAMILY_FOLDERS:
        for file in (PACKAGE / "models" / folder).glob("*.py"):
            assert {target.parent.name for _, target in imports(file)} & set(FAMILY_FOLDERS) <= {folder}


def test_the_top_of_the_package_is_short():
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 12


def test_an_upward_import_would_be_found(tmp_path):
    """The test above can fail: `imports` finds imports in functions, relative ones and those by the package's name."""
    file = PACKAGE / "compression" / "budget.py"
    text = file.read_text() + "\n\ndef f():\n    from ..models.cache import x\n    import flashvid_hf.cli\n"
    (tmp_path / "compression").mkdir()
    probe = tmp_path / "compression" / "probe.py"
    probe.write_text(text)
    targets = [target for _, target in imports(probe)]
    assert tmp_path / "models" / "cache" in targets and PACKAGE / "cli" in targets
