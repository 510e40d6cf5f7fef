"""Checks of the code in a folder. The code is not run."""

import re
from collections.abc import Iterator

from .bundle import ORIGIN_LINE
from .hub_folder import CheckSkipped, HubFolder
from .published_code import find_origin, published_files


def check_rule(folder: HubFolder, rule: str) -> Iterator[str]:
    """The code follows one rule of `code_audit`."""
    yield from (str(fault) for fault in folder.faults if fault.rule == rule)


def check_generated_code(folder: HubFolder) -> Iterator[str]:
    """Every generated file is what the installed package generates; files of other versions cannot be compared.

    Raises:
        CheckSkipped: the files do not say that they were generated, or they are from another version.
    """
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.path.glob("*.py"))}
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
        if texts[name] != generated.get(name):
            yield (
                f"{name}: is not what {origins[name]} generates: export the folder again, or take the line with "
                f"`{origins[name]}` out of the file if you changed its code on purpose"
            )
