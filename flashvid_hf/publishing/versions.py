"""Versions of libraries: those that published code needs, those that it was tested with, and the installed ones."""

import re
from collections.abc import Iterator
from importlib.metadata import version

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from .hub_folder import CheckSkipped, HubFolder

# What the code of a repository needs, with the bounds of pyproject.toml.
REQUIREMENTS = ("transformers>=5.17,<6", "torch>=2.5", "torchvision", "accelerate", "av>=14.1")
# The oldest and the newest transformers that the whole test suite runs with: the pins of the two constraints files.
TESTED_TRANSFORMERS = ("5.17.0", "5.24.0")
# The sentence in a card that names the tested versions.
TESTED_SENTENCE = f"Tested with transformers {' and '.join(TESTED_TRANSFORMERS)}."
# The card's section on required and tested versions.
INSTALLATION = f"""\
```console
pip install {" ".join(f'"{requirement}"' for requirement in REQUIREMENTS)}
```

{TESTED_SENTENCE}
"""


def installed_versions() -> str:
    """The installed versions that decide how a folder behaves, as one line."""
    return ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))


def check_versions(folder: HubFolder) -> Iterator[str]:
    """The installed transformers lies in the card's range, and is at least the newest tested version in the card.

    Raises:
        CheckSkipped: the card states no range or no tested version, or the installed version lies outside of the range
            or is older. The other checks then do not show how the folder behaves with the newest tested version.
    """
    stated = re.search(
        r"(?<![\w-])transformers(?:\[[\w,]*\])?\s*((?:(?:===|[<>=!~]=|[<>])\s*\d[\w.*]*\s*,?\s*)+)", folder.card
    )
    if stated is None:
        raise CheckSkipped('the card states no range such as `pip install "transformers>=5.17,<6"`')
    try:
        allowed = SpecifierSet(stated[1].rstrip(" .,\n"))
    except InvalidSpecifier:
        yield f"README.md: `transformers{stated[1].strip()}` is no range of versions, correct it"
        return
    installed = version("transformers")
    if not allowed.contains(installed, prereleases=True):
        raise CheckSkipped(
            f"the card states transformers{allowed} and {installed} is installed: the checks that load the folder say "
            "nothing about the stated versions. Install one of them and check again"
        )
    sentence = re.search(r"Tested with transformers\s+((?:\d+(?:\.\d+)+|,|and|to|\s)+)", folder.card)
    tested = re.findall(r"\d+(?:\.\d+)+", sentence[1]) if sentence else []
    if not tested:
        raise CheckSkipped(f"the card does not say which versions were tested, as in `{TESTED_SENTENCE}`")
    newest = max(tested, key=Version)
    if Version(installed) < Version(newest):
        raise CheckSkipped(
            f"the card was tested with transformers {newest} and {installed} is installed: install {newest} and check "
            "again to see how the folder runs with it"
        )
