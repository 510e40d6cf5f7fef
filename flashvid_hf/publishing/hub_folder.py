"""A Hub folder as the checks see it: its kind, and its parts, each read once."""

import ast
import json
import re
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml  # type: ignore[import-untyped,unused-ignore]
from huggingface_hub.constants import HF_HUB_CACHE

from ..families import FAMILIES, family_of_type
from ..models.family import Family
from . import clean_probe
from .clean_process import COMMIT, workplace
from .code_audit import Fault, find_faults
from .published_code import published_files
from .remote_code import find_trusted_names

RECIPE, WEIGHTLESS, FULL = "recipe", "weightless", "full"
PROBE_HUB_ID, PROBE_REVISION = "check/flashvid-folder-0.1B", "v1"  # dot and hyphens: the loader must replace them


class CheckFailure(Exception):
    """The folder is wrong; the message says where, what and the next step."""


class CheckSkipped(Exception):
    """A check could not run; the message says why."""


class Snippet(NamedTuple):
    """A python block of the card; `line` is its first line in README.md, counted from 1."""

    number: int
    line: int
    code: str

    @property
    def program(self) -> str:
        """The code after as many empty lines as precede it in README.md, so that errors name the lines of README.md."""
        return "\n" * (self.line - 1) + self.code


class HubFolder:
    """A folder under check.

    Args:
        path: the folder. A *recipe* has neither code nor weights. A *weightless* folder has code and names its base
            model. A *full* folder has code and weights.

    Raises:
        ValueError: `path` is no folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).resolve()
        if not self.path.is_dir():
            raise ValueError(f"`folder` is {str(path)!r}, which is no folder: pass one that has a `config.json`")

    @cached_property
    def kind(self) -> str:
        if any(self.path.glob("*.safetensors")) or any(self.path.glob("*.bin")):
            return FULL
        return WEIGHTLESS if any(self.path.glob("*.py")) else RECIPE

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object at the top of the folder.

        Raises:
            CheckFailure: the file is missing, or it holds no JSON object.
        """
        path = self.path / name
        if not path.is_file():
            raise CheckFailure(f"{name}: is missing, add it")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckFailure(f"{name}: is no JSON ({error}), correct it") from error
        if not isinstance(content, dict):
            raise CheckFailure(f"{name}: holds a {type(content).__name__}, write a JSON object")
        return content

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json` as it stands."""
        return self.read_json("config.json")

    @cached_property
    def family(self) -> Family:
        """The family that `model_type` names."""
        model_type = self.config.get("model_type")
        family = family_of_type(model_type)
        if family is not None:
            return family
        known = ", ".join(family.config.model_type for family in FAMILIES)
        raise CheckFailure(f"config.json: `model_type` is {model_type!r}, choose one of {known}")

    @cached_property
    def full_config(self) -> Any:
        """The configuration as the family's class reads it. A recipe has no full configuration.

        Raises:
            CheckSkipped: the folder is a recipe, or the configuration is not valid.
        """
        if self.kind == RECIPE:
            raise CheckSkipped("the configuration of the base model is not here")
        try:
            return self.family.config.from_pretrained(self.path)
        except Exception as error:
            raise CheckSkipped("`config.json` is not valid, see above") from error

    @cached_property
    def card(self) -> str:
        """README.md; empty if there is none."""
        path = self.path / "README.md"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    @cached_property
    def card_metadata(self) -> dict[str, Any]:
        """The YAML block at the head of the card."""
        if not self.card:
            raise CheckFailure("README.md: is missing or empty, write the model's card")
        match = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", self.card, re.MULTILINE | re.DOTALL)
        if not match:
            raise CheckFailure("README.md:1: has no metadata, start it with a YAML block between two lines `---`")
        try:
            metadata = read_yaml(match[1])
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line, problem = (mark.line + 2 if mark else 1), getattr(error, "problem", None) or error
            raise CheckFailure(f"README.md:{line}: the metadata is no YAML ({problem}), correct it") from error
        if not isinstance(metadata, dict):
            raise CheckFailure("README.md:2: the metadata has no fields, write `name: value` lines")
        return metadata

    @cached_property
    def snippets(self) -> tuple[Snippet, ...]:
        """The card's python blocks."""
        blocks = re.finditer(r"^```(?:python|py)[ \t]*\r?\n(.*?)^```", self.card, re.MULTILINE | re.DOTALL)
        lines = [(self.card.count("\n", 0, block.start(1)) + 1, block[1]) for block in blocks]
        return tuple(Snippet(number, line, code) for number, (line, code) in enumerate(lines, 1))

    @property
    def trusted_names(self) -> list[str]:
        """The names of models that the card's python blocks load with `trust_remote_code`."""
        return sorted({name for snippet in self.snippets for name in find_trusted_names(snippet.program)})

    @cached_property
    def faults(self) -> list[Fault]:
        """The faults that `code_audit` finds in the code, in files that differ from what the package generates."""
        family = family_of_type(self.config.get("model_type")) if (self.path / "config.json").is_file() else None
        return find_faults(self.path, published_files(family) if family else None)

    def defines(self, reference: str) -> bool:
        """Whether "module.Class" names a class in the folder's code, or for a recipe in the generated code."""
        module, _, name = reference.partition(".")
        try:
            if self.kind == RECIPE:
                text = published_files(self.family)[f"{module}.py"]
            else:
                text = (self.path / f"{module}.py").read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (KeyError, OSError, SyntaxError, UnicodeDecodeError):
            return False
        return any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body)

    @property
    def base(self) -> str | None:
        """The base model of a recipe or a weightless folder."""
        return None if self.kind == FULL else self.config.get("base_model_name_or_path")

    @cached_property
    def weight_bytes(self) -> int:
        """Size of the weights that the folder loads, its own or those of the base in the user's cache."""
        folders = [self.path]
        if self.base:
            folders.append(Path(HF_HUB_CACHE, f"models--{self.base.replace('/', '--')}"))
        return sum(file.stat().st_size for folder in folders for file in folder.rglob("*.safetensors"))

    @cached_property
    def findings(self) -> dict[str, Any]:
        """The findings of loading and running the folder in a clean process, see `clean_probe`."""
        request = {
            "folder": str(self.path),
            "hub_id": PROBE_HUB_ID,
            "revision": PROBE_REVISION,
            "base": self.base,
            "base_revision": self.config.get("base_model_revision"),
            "upstream_settings": dict(self.family.upstream_settings),
        }
        program = Path(clean_probe.__file__).read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory(prefix="flashvid-check-") as results, workplace(self.weight_bytes) as place:
            place.add_to_cache(PROBE_HUB_ID, self.path)
            if self.base:
                place.link_cache(self.base)
            request_file, findings_file = Path(results, "request.json"), Path(results, "findings.pt")
            request_file.write_text(json.dumps(request), encoding="utf-8")
            status, errors = place.run(program, str(request_file), str(findings_file), name="clean_probe.py")
            if not findings_file.exists():
                reason = f"the process ended with status {status}: {last_lines(errors)}"
                return {"errors": {"local": reason, "hub": reason}}
            return torch.load(findings_file, weights_only=True)  # the folder's code could have written it

    def finding(self, name: str, part: str = "local") -> Any:
        """One of the findings; `part` is "local" or "hub", the way of loading that it belongs to.

        Raises:
            CheckFailure: the folder loads, but its model fails before this finding.
            CheckSkipped: the folder does not load.
        """
        if name in self.findings:
            return self.findings[name]
        if {"local": "loading", "hub": "hub_loading"}[part] not in self.findings:
            raise CheckSkipped("the folder does not load, see above")
        raise CheckFailure(f"the model does not run: {last_lines(self.findings['errors'][part])}")


def read_yaml(text: str) -> Any:
    """The content of a YAML text without aliases, which can stand for more than any memory holds.

    Raises:
        yaml.YAMLError: it is no YAML, or it has an alias.
    """
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            problem = f"the alias `*{event.anchor}` is not allowed: write out what it stands for"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
    return yaml.safe_load(text)


def is_of_the_commit(class_name: str) -> bool:
    """Whether a dynamically loaded class comes from the made-up Hub entry, at its commit."""
    return f".{COMMIT}." in class_name


def last_lines(text: str, number: int = 3) -> str:
    """The last lines of a program's output, joined to one line of at most 600 characters."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip(" ^~")]
    return " | ".join(lines[-number:])[-600:] or "it wrote nothing"
