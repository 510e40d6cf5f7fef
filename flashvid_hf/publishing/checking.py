"""`check`: proves that a Hub folder is right.

    for result in run_checks("hub_configs/flashvid-demo"):
        result.title, result.status, result.message

A recipe of `hub_configs/` gets the checks that need no base model. A folder with code is also loaded and run in a
process without the package, and compared with upstream.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from .check_card import check_card_metadata, check_eval_results, check_snippets_compile, check_snippets_run
from .check_code import check_files, check_generated_code, check_isolation, check_rule, check_snippet_names
from .check_config import check_base_model, check_classes, check_compressing_settings, check_settings
from .check_model import (
    check_counts,
    check_differs_from_upstream,
    check_equals_upstream,
    check_keys,
    check_loads_from_hub,
    check_loads_from_path,
)
from .code_audit import EXECUTION, IMPORTS, NAMES, NETWORK, RELATIVE, TEXT, WRITING
from .hub_folder import FULL, RECIPE, WEIGHTLESS, CheckFailure, CheckSkipped, HubFolder
from .versions import check_versions

ALL_KINDS = (RECIPE, WEIGHTLESS, FULL)
WITH_CODE = (WEIGHTLESS, FULL)


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Args:
        title: what is true of a folder that passes.
        status: "passed", "failed" or "skipped".
        message: what is wrong, one line for each fault, or why the check was skipped; empty if it passed.
    """

    title: str
    status: Literal["passed", "failed", "skipped"]
    message: str = ""


class Check(NamedTuple):
    """One check.

    Args:
        title: what is true of a folder that passes.
        find_faults: yields what is wrong with a folder, or raises `CheckFailure` or `CheckSkipped`.
        kinds: the kinds of folders that it applies to.
        runs_code: whether it runs the code of the folder or of its card.
        is_guard: whether nothing of a folder that fails it is run: its code, files and card are not as they must be.
    """

    title: str
    find_faults: Callable[[HubFolder], Iterator[str]]
    kinds: tuple[str, ...]
    runs_code: bool = False
    is_guard: bool = False


CHECKS = (
    Check("the folder has only files that a model needs", check_files, ALL_KINDS, is_guard=True),
    Check("the settings in config.json are valid", check_settings, ALL_KINDS),
    Check("the settings compress and prune", check_compressing_settings, ALL_KINDS),
    Check("every class that the configuration names exists", check_classes, ALL_KINDS, is_guard=True),
    Check("the weights are here, or the base that has them is named", check_base_model, ALL_KINDS, is_guard=True),
    Check("the card's metadata is valid", check_card_metadata, ALL_KINDS),
    Check("the installed transformers is the newest that the card was tested with", check_versions, ALL_KINDS),
    Check("the card's python blocks compile", check_snippets_compile, ALL_KINDS),
    Check("the card's python blocks keep the rules for code", check_snippet_names, ALL_KINDS, is_guard=True),
    Check("the evaluation results can be read", check_eval_results, ALL_KINDS),
    Check(
        "the code imports only the standard library, torch, transformers and huggingface_hub",
        partial(check_rule, rule=IMPORTS),
        WITH_CODE,
        is_guard=True,
    ),
    Check("the code is plain text in UTF-8", partial(check_rule, rule=TEXT), WITH_CODE, is_guard=True),
    Check(
        "relative imports are flat, as the loader reads them",
        partial(check_rule, rule=RELATIVE),
        WITH_CODE,
        is_guard=True,
    ),
    Check("the code uses no network", partial(check_rule, rule=NETWORK), WITH_CODE, is_guard=True),
    Check("the code runs no other code", partial(check_rule, rule=EXECUTION), WITH_CODE, is_guard=True),
    Check("the code writes no file", partial(check_rule, rule=WRITING), WITH_CODE, is_guard=True),
    Check("the code uses only names that are known", partial(check_rule, rule=NAMES), WITH_CODE, is_guard=True),
    Check(
        "the code is what the named version of flashvid_hf generates", check_generated_code, WITH_CODE, is_guard=True
    ),
    Check("the code runs without a network and with limits", check_isolation, WITH_CODE, runs_code=True),
    Check(
        "the folder loads without the package, offline, from its path", check_loads_from_path, WITH_CODE, runs_code=True
    ),
    Check(
        "the folder loads without the package, offline, by a Hub id at a revision",
        check_loads_from_hub,
        WITH_CODE,
        runs_code=True,
    ),
    Check("no weight is missing or left over", check_keys, WITH_CODE, runs_code=True),
    Check("with `retention_ratio=1.0` it equals upstream", check_equals_upstream, WITH_CODE, runs_code=True),
    Check(
        "at the configured ratio the output differs from upstream's",
        check_differs_from_upstream,
        WITH_CODE,
        runs_code=True,
    ),
    Check("as many video tokens are kept as the configuration says", check_counts, WITH_CODE, runs_code=True),
    Check("the card's python blocks run as they stand", check_snippets_run, WITH_CODE, runs_code=True),
)


def run_checks(folder: str | Path) -> Iterator[CheckResult]:
    """Run the checks that apply to a folder, one after the other. A failed check does not end the run.

    The code of the folder and the snippets of its card are run, as by anyone who loads the folder with
    `trust_remote_code=True`, in a process with an empty home, without credentials, and, where the system allows it,
    without a network and with limits. Nothing is run after any fault of the files, the code, the classes, the base or
    the snippets. The checks show that a folder is what these tools write, and catch accidents. They are no defence
    against an author who means harm.

    Args:
        folder: a recipe, a folder with code, or one with code and weights.

    Yields:
        The result of each check, as soon as it is done.

    Raises:
        ValueError: `folder` is no folder.
    """
    hub_folder = HubFolder(folder)
    is_safe = True
    for check in CHECKS:
        if hub_folder.kind not in check.kinds:
            continue
        if check.runs_code and not is_safe:
            yield CheckResult(check.title, "skipped", "a rule is broken, see above, and the code was not run")
            continue
        result = run_check(check, hub_folder)
        is_safe = is_safe and not (check.is_guard and result.status == "failed")
        yield result


def run_check(check: Check, folder: HubFolder) -> CheckResult:
    """Run one check."""
    faults: list[str] = []
    try:
        for fault in check.find_faults(folder):
            faults.append(fault)  # one by one, so that faults found before an exception count
    except CheckSkipped as reason:
        if not faults:
            return CheckResult(check.title, "skipped", str(reason))
    except CheckFailure as failure:
        faults.append(str(failure))
    except Exception as error:  # a folder can be broken in ways that no check thinks of
        faults.append(f"{type(error).__name__}: {error}; the check cannot read the folder")
    return CheckResult(check.title, "failed" if faults else "passed", "\n".join(faults))


def check_folder(folder: str | Path) -> list[CheckResult]:
    """All results of `run_checks`."""
    return list(run_checks(folder))
