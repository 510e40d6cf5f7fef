"""Checks of the files and the code in a folder. The code is not run."""

import re
from collections.abc import Iterator

from .bundle import ORIGIN_LINE
from .clean_process import workplace
from .code_audit import find_snippet_faults
from .folder_files import find_file_faults
from .hub_folder import CheckSkipped, HubFolder
from .published_code import find_origin, published_files


def check_files(folder: HubFolder) -> Iterator[str]:
    """The folder has only files of the kinds that a model needs, by name and content; no link, pickle or byte code."""
    yield from find_file_faults(folder.path)


def check_snippet_names(folder: HubFolder) -> Iterator[str]:
    """The card's python blocks keep the rules of `code_audit`."""
    for snippet in folder.snippets:
        yield from map(str, find_snippet_faults("README.md", snippet.program))
    if len(names := folder.trusted_names) > 1:
        yield (
            f"README.md: blocks load {' and '.join(map(repr, names))} with `trust_remote_code`: it is for this model "
            "alone, so write one name"
        )


def check_isolation(folder: HubFolder) -> Iterator[str]:
    """This system can keep code from the network, and set limits.

    Raises:
        CheckSkipped: it cannot; the message says what the code can do.
    """
    with workplace() as place:
        problems = place.find_problems()
    if problems:
        raise CheckSkipped("\n".join(problems))
    yield from ()


def check_rule(folder: HubFolder, rule: str) -> Iterator[str]:
    """The code follows one rule of `code_audit`."""
    yield from (str(fault) for fault in folder.faults if fault.rule == rule)


def check_generated_code(folder: HubFolder) -> Iterator[str]:
    """Every generated file is what the installed package generates; files of other versions cannot be compared.

    Raises:
        CheckSkipped: the files do not say that they were generated, or they are from another version.
    """
    texts = {path.name: path.read_bytes().decode("utf-8", "replace") for path in sorted(folder.path.glob("*.py"))}
    origins = {name: found[1] for name, text in texts.items() if (found := re.search(ORIGIN_LINE, text))}
    if not origins:
        raise CheckSkipped("no file says from which version of flashvid_hf it was generated")
    others = sorted(set(origins.values()) - {find_origin()})
    if others:
        raise CheckSkipped(
            f"the code was generated from {others[0]} and {find_origin()} is installed: install that version and check "
            "again to compare them"
        )
    generated = published_files(folder.family)
    for name in origins:
        if texts[name] == generated.get(name):  # `code_audit` judges the imports of all other files
            for module in re.findall(r"^from \.(\w+) import ", texts[name], re.MULTILINE):
                if f"{module}.py" not in texts:
                    yield f"{name}: imports `.{module}`, and the folder has no `{module}.py`: export the folder again"
        else:
            yield (
                f"{name}: is not what {origins[name]} generates: export the folder again, or take the line with "
                f"`{origins[name]}` out of the file if you changed its code on purpose"
            )
