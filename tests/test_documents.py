"""The documents of the repository are right about its files: links, paths, the layout, versions."""

import ast
import re
from pathlib import Path

import pytest
import tomllib
import yaml

import flashvid_hf

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "flashvid_hf"
FOLDERS = ("*", ".github", "benchmarks", "examples", "hub_configs", "scripts", "tests")
DOCUMENTS = sorted({path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.md" if folder != "*" else "*.md")})
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())

LINK = re.compile(r"\]\(([^()\s]+)\)")
# A path in backticks whose first part is a folder of this repository.
PATH = re.compile(r"`((?:flashvid_hf|tests|scripts|examples|hub_configs|benchmarks|\.github|\.ci)/[\w./-]*)`")


def read_text(path: Path) -> str:
    """A document without its code blocks, in which brackets have another meaning."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def find_anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)", read_text(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def find_broken_links(path: Path) -> list[str]:
    broken = []
    for link in LINK.findall(read_text(path)):
        if re.match(r"[a-z]+:", link):  # an address on the web
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in find_anchors(target)):
            broken.append(link)
    return broken


def test_all_documents_are_found():
    names = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS}
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "hub_configs/README.md"} <= names


def test_what_counts_as_broken(tmp_path):
    document = tmp_path / "a.md"
    (tmp_path / "b.md").write_text("# Two words\n\n```\n# no heading\n```\n")
    links = ["b.md", "b.md#two-words", "https://a.b/c.md", "#here", "c.md", "b.md#no-heading", "#there"]
    document.write_text("## Here\n\n" + "\n".join(f"[x]({link})" for link in links))
    assert find_broken_links(document) == ["c.md", "b.md#no-heading", "#there"]


@each_document
def test_links(path):
    assert find_broken_links(path) == []


@each_document
def test_paths(path):
    if path.name == "CHANGELOG.md":
        return  # it names files that have moved
    paths = PATH.findall(read_text(path))
    assert [named for named in paths if not (ROOT / named).exists()] == []


@each_document
def test_targets_of_make(path):
    named = re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(named) <= targets


def read_picture() -> list[str]:
    """The parts of the package in the layout of CONTRIBUTING.md, from top to bottom. Folders end with "/"."""
    picture = re.search(r"^```text\n.*?^flashvid_hf/\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    return re.findall(r"^  ([\w/]+/|\w+\.py) ", picture[1], re.MULTILINE)


def test_the_picture_of_the_layout_shows_every_room():
    rooms = [f"{path.name}/" if path.is_dir() else path.name for path in PACKAGE.iterdir()]
    families = [f"models/{path.name}/" for path in (PACKAGE / "models").iterdir() if path.is_dir()]
    there = [room for room in (*rooms, *families) if "__pycache__" not in room and room != "py.typed"]
    assert sorted(read_picture()) == sorted(there)


def test_the_arrows_in_the_picture_go_downward():
    rooms = read_picture()

    def line(path: Path) -> int:
        """The line of the part that contains a module. A family's folder comes before `models/`."""
        name = path.relative_to(PACKAGE).as_posix()
        return next(number for number, room in enumerate(rooms) if name.startswith(room))

    arrows = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                target = path.parents[node.level - 1].joinpath(*node.module.split("."))
                target = target / "__init__.py" if target.is_dir() else target.with_suffix(".py")
                assert line(path) <= line(target), (path.name, node.module)
                arrows += 1
    assert arrows > 200


def test_the_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"] == flashvid_hf.__version__
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]
    paper = citation["preferred-citation"]
    entry = re.search(r"^@inproceedings.*?^}", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[0]
    fields = {key: value.replace("{", "").replace("}", "") for key, value in re.findall(r"(\w+) += \{(.*)\}", entry)}
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert (paper["title"], " and ".join(names)) == (fields["title"], fields["author"])
    assert (paper["collection-title"], str(paper["year"])) == (fields["booktitle"], fields["year"])


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")), ids=lambda path: path.stem)
def test_issue_forms(path):
    """What GitHub requires of a form: a name, a description, and fields with unique ids."""
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert form["name"] and form["description"] and form["body"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in fields)
    assert {field["type"] for field in fields} <= {"input", "textarea", "dropdown", "checkboxes"}


def test_workflows_call_what_is_there():
    for path in ROOT.glob(".github/workflows/*.yml"):
        (job,) = yaml.safe_load(path.read_text())["jobs"].values()
        assert job["timeout-minutes"] and job["permissions"] == {"contents": "read"}
        for command in filter(None, (step.get("run") for step in job["steps"])):
            program, *arguments = command.split()
            if program == "make":
                assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
            elif program != "sudo":
                assert (ROOT / program).is_file()
