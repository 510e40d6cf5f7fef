#!/usr/bin/env python3
"""Copy a selection of the reference numbers to `tests/goldens`, small enough to live in the repository.

    python scripts/select_goldens.py FULL_DIRECTORY [--target tests/goldens]

The numbers were recorded from the FlashVID code that its authors released under the MIT licence; `reference` in
manifest.json names the commit and the versions it ran with. README.md and `conventions` of the manifest say what the
numbers mean, and are copied too. Nothing is computed again: a file holds the tensors of the chosen cases, unchanged,
and the manifest lists only these cases, with the checksums of the new files.

What is chosen:

* whole models: the cases in `MODELS`, with one model for every architecture, whose weights take more bytes than
  its cases;
* stages: for every stage its inputs, beginning with the smallest, each with all its cases, up to `STAGE_BYTES`;
* the whole compression: the inputs, beginning with the smallest, up to `COMPRESSION_BYTES`. From each input come the
  cases that are the first to show one of `features`; cases that can be compared come before others. The settings with
  which the released code raises are included.

The same directory always gives the same selection, byte for byte. Running the tests with `FLASHVID_GOLDENS` set to the
full directory compares all cases.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections import defaultdict
from pathlib import Path

from safetensors.torch import load_file, save

ROOT = Path(__file__).resolve().parent.parent
MODELS = (
    *(f"qwen2_5_vl/{name}" for name in ("vanilla_v3", "case07_v3", "case08_v3", "case09_v3", "case12_v3")),
    *(f"qwen3_vl/{name}" for name in ("vanilla_v1", "case01_v1", "case03_v1")),
    *(f"llava/{name}" for name in ("vanilla_ov_v1", "vanilla_vid_v1", "ov_r25", "ov_clean", "vid_r25", "vid_clean")),
)
# Limits that keep the repository small.
STAGE_BYTES = 200_000
COMPRESSION_BYTES = 800_000
TOTAL_BYTES = 8_000_000


def features(case: dict) -> set[tuple]:
    """Features of a case of the compression: its settings and flags, each also combined with the selection method."""
    params, flags, expected = case["params"], case["flags"], case["expect"]
    single = {
        "tokens_rule": case.get("tokens_rule"),
        "robust": flags["robust"],
        "tie": flags["dpc_exact_boundary_ties"] > 0,
        "has_duplicates": flags["has_duplicates"],
        "zero_length_segments": flags["zero_length_segments"],
        "single_frame_segments": flags["single_frame_segments"] > 0,
        "wrong_divisor": flags["tstm_wrong_divisor_tokens"] > 0,
        "soft_threshold_used": flags["soft_threshold_used"],
        "over_budget": expected["n_out"] > expected["budget_total"],
        "selects": case["derived"]["num_attn_div_tokens"] > 0,
        "merges": case["derived"]["num_sttm_tokens"] > 0,
        "segments": params["do_segment"],
        "complements": params["complementary_segment"],
    }
    methods = ("any method", params["token_selection_method"])
    return {(name, value, method) for name, value in single.items() for method in methods}


def is_comparable(case: dict) -> bool:
    flags = case["flags"]
    return flags["robust"] and not flags["dpc_exact_boundary_ties"]


def is_clean(case: dict) -> bool:
    """Whether none of the deviations of the released code touches the case."""
    flags = case["flags"]
    deviates = flags["has_duplicates"] or flags["zero_length_segments"] or flags["tstm_wrong_divisor_tokens"]
    return not deviates and case["expect"]["n_out"] == case["expect"]["budget_total"]


class Selection:
    """The tensors that are taken from each file, and their size."""

    def __init__(self, source: Path):
        self.source = source
        self.names = defaultdict(set)  # by file
        self.stored = {}

    def load(self, file: str) -> dict:
        if file not in self.stored:
            self.stored[file] = load_file(self.source / file)
        return self.stored[file]

    def size(self, file: str, names: set[str]) -> int:
        """Number of bytes that these tensors add."""
        tensors = self.load(file)
        return sum(tensors[name].numel() * tensors[name].element_size() + 100 for name in names)

    def add(self, file: str, names: set[str]) -> None:
        self.names[file] |= names

    def save(self, target: Path) -> None:
        for file, names in self.names.items():
            path = target / file
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = self.load(file)
            if names == set(tensors):
                shutil.copyfile(self.source / file, path)
            else:
                path.write_bytes(save({name: tensors[name].contiguous() for name in sorted(names)}))


def tensor_names(entry: dict) -> set[str]:
    return {name for name in entry["tensors"].values() if name is not None}


def select_stages(cases: list[dict], selection: Selection) -> list[dict]:
    by_input = defaultdict(list)
    for case in cases:
        by_input[case["stage"], case["id"].split(".")[0]].append(case)  # ids are <stage>/<input>.<settings>
    names = {key: set().union(*map(tensor_names, group)) for key, group in by_input.items()}
    size = {key: selection.size(group[0]["file"], names[key]) for key, group in by_input.items()}
    used, chosen = defaultdict(int), []
    for key in sorted(by_input, key=lambda key: (size[key], key)):
        used[key[0]] += size[key]
        if used[key[0]] <= STAGE_BYTES:
            selection.add(by_input[key][0]["file"], names[key])
            chosen += by_input[key]
    return [case for case in cases if case in chosen]


def select_compression(compression: dict, selection: Selection) -> dict:
    cases_of = defaultdict(list)
    for case in compression["cases"]:
        cases_of[case["input"]].append(case)
    used, inputs, cases = 0, [], []
    for entry in sorted(compression["inputs"], key=lambda entry: (entry["T"] * entry["N"] * entry["D"], entry["name"])):
        file, seen, chosen = entry["file"], set(), []
        names = tensor_names(entry)
        by_use = sorted(cases_of[entry["name"]], key=lambda case: (not is_comparable(case), not is_clean(case)))
        for case in by_use:
            if not features(case) <= seen:
                seen |= features(case)
                chosen.append(case)
                names |= tensor_names(case)
                names |= {"input.proj"} if case["tensors"].get("tokens_proj") else set()
        if used + selection.size(file, names) <= COMPRESSION_BYTES:
            used += selection.size(file, names)
            selection.add(file, names)
            inputs.append(entry["name"])
            cases += [case["id"] for case in chosen]
    return {
        "inputs": [entry for entry in compression["inputs"] if entry["name"] in inputs],
        "cases": [case for case in compression["cases"] if case["id"] in cases],
        "errors": [case for case in compression["errors"] if case["input"] in inputs],
    }


def copy_models(cases: list[dict], source: Path, target: Path) -> list[dict]:
    chosen = [case for case in cases if case["id"] in MODELS]
    files = set()
    for case in chosen:
        model = Path(case["model_dir"])
        files |= {path.relative_to(source) for path in (source / model).glob("*.json")} | {model / "model.safetensors"}
        files |= {Path(case[name]) for name in ("input_file", "file", "vision_file") if case.get(name)}
    for file in sorted(files):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)
    return chosen


def describe(path: Path) -> dict:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="full directory of the reference numbers")
    parser.add_argument("--target", type=Path, default=ROOT / "tests" / "goldens")
    arguments = parser.parse_args()
    source, target = arguments.source, arguments.target

    full = json.loads((source / "manifest.json").read_text())
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    selection = Selection(source)
    manifest = {
        **full,
        "set": f"{full['set']}, selection",
        "compression": select_compression(full["compression"], selection),
        "stages": select_stages(full["stages"], selection),
        "e2e": copy_models(full["e2e"], source, target),
    }
    selection.save(target)
    shutil.copyfile(source / "README.md", target / "README.md")
    files = sorted(path for path in target.rglob("*") if path.is_file())
    manifest["files"] = {path.relative_to(target).as_posix(): describe(path) for path in files}
    (target / "manifest.json").write_text(json.dumps(manifest, separators=(",", ":")) + "\n")

    total = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    counts = {name: len(manifest["compression"][name]) for name in ("inputs", "cases", "errors")}
    print(f"{target}: {total} bytes, {counts}, {len(manifest['stages'])} stages, {len(manifest['e2e'])} of models")
    if total > TOTAL_BYTES:
        raise SystemExit(f"{total} bytes are more than {TOTAL_BYTES}: choose less")


if __name__ == "__main__":
    main()
