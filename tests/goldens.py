"""The reference numbers: their directory, their cases, and the reasons why some cannot be compared.

`FLASHVID_GOLDENS` names the directory; by default it is the selection in `tests/goldens`. The README.md and the
`conventions` of manifest.json in that directory say what the numbers are.
"""

import atexit
import itertools
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(os.environ.get("FLASHVID_GOLDENS") or Path(__file__).parent / "goldens")
BEHAVIORS = ("released", "paper")
# The property under which a test reports its kind, and the reason of an exclusion or None; conftest.py counts them.
PROPERTY = "golden"

# Tolerances from the manifest: relative to the largest |token| of a case, and absolute for logits.
TOKEN_TOLERANCE = 1e-5
LOGITS_TOLERANCE = 2e-4
# If the two largest logits are closer than this, the greedy token is not certain. From the manifest.
MIN_MARGIN = 1e-3


@cache
def manifest() -> dict:
    return json.loads((ROOT / "manifest.json").read_text())


@cache
def load(file: str) -> dict[str, torch.Tensor]:
    return load_file(ROOT / file)


def tensors(case: dict) -> dict[str, torch.Tensor]:
    """The tensors of a case of the whole compression or of a stage, under their short names."""
    stored = load(case["file"])
    return {name: stored[key] for name, key in case["tensors"].items() if key is not None}


@cache
def _inputs() -> dict[str, dict]:
    return {entry["name"]: entry for entry in manifest()["compression"]["inputs"]}


def video(case: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (T, N, D) and attention (T, N) of a case of the whole compression, as fresh copies."""
    entry = _inputs()[case["input"]]
    stored = load(entry["file"])
    return tuple(stored[entry["tensors"][name]].clone() for name in ("video_features", "cls_attention"))


def compression_cases() -> list[dict]:
    return manifest()["compression"]["cases"]


def error_cases() -> list[dict]:
    """Cases with settings for which the released code raises."""
    return manifest()["compression"]["errors"]


def stage_cases(stage: str) -> list[dict]:
    return [case for case in manifest()["stages"] if case["stage"] == stage]


def e2e_cases(*families: str) -> list[dict]:
    """Cases of whole models; of all families if none is named."""
    return [case for case in manifest()["e2e"] if not families or case["family"] in families]


def vision_cases() -> list[dict]:
    """Cases of whole models for which the input and the output of the compression are recorded."""
    return [case for case in e2e_cases() if case["kind"] != "vanilla"]


def exclusion(case: dict, behavior: str) -> str | None:
    """The reason why a case cannot be compared in a behavior; `None` if it must be equal.

    In behavior "released", every robust and tie-free case whose budget stays below N must be equal. In "paper", such a
    case must be equal if none of the released code's deviations affects it. Repeated indices exclude no case from
    "released": the order of their rows is undefined, so they are compared as sets.
    """
    if "exception" in case:
        return f"released code raises {case['exception']}"
    if "family" in case:
        return _e2e_exclusion(case, behavior)
    if not case.get("flags", {}).get("robust", True):
        return "not robust"
    if "stage" in case:
        return {
            "segment": _segment_exclusion,
            "token_selection": _selection_exclusion,
            "spatiotemporal_compression": _trees_exclusion,
            "dpc_knn": _clusters_exclusion,
            "fastv_prune": lambda case, behavior: None,
        }[case["stage"]](case, behavior)
    return _compression_exclusion(case, behavior)


def _compression_exclusion(case: dict, behavior: str) -> str | None:
    flags, derived, expected = case["flags"], case["derived"], case["expect"]
    if flags["dpc_exact_boundary_ties"]:
        return "tie"
    if derived["token_budget_per_frame"] >= _inputs()[case["input"]]["N"]:
        return "budget reaches N"
    if behavior == "released":
        return None
    if flags["has_duplicates"]:
        return "repeated index"
    if flags["zero_length_segments"]:
        return "zero-length segment"
    if flags["tstm_wrong_divisor_tokens"]:
        return "wrong divisor"
    if expected["n_out"] != expected["budget_total"]:
        return "budget missed"
    # In a segment of one frame the released code clusters the selected tokens too. That changes the clusters even if,
    # by luck, no selected token becomes a centre and so no index repeats. Without selected tokens it changes nothing.
    if flags["single_frame_segments"] and derived["num_sttm_tokens"] and derived["num_attn_div_tokens"]:
        return "selected tokens clustered"
    return None


def _segment_exclusion(case: dict, behavior: str) -> str | None:
    return "zero-length segment" if behavior == "paper" and case["flags"]["zero_length_segments"] else None


def _selection_exclusion(case: dict, behavior: str) -> str | None:
    return "repeated index" if behavior == "paper" and case["flags"]["n_duplicates"] else None


def _trees_exclusion(case: dict, behavior: str) -> str | None:
    if behavior == "released":
        return None
    if case["flags"]["soft_threshold_used"]:  # the released code then makes one link fewer than it could
        return "budget missed"
    return "wrong divisor" if case["flags"]["tstm_wrong_divisor_tokens"] else None


def _clusters_exclusion(case: dict, behavior: str) -> str | None:
    params = case["params"]
    if case["flags"]["all_densities_tie"]:
        return "tie"
    if params["num_clusters"] > num_valid_tokens(case):
        return "more clusters than tokens"
    return None


def num_valid_tokens(case: dict) -> int:
    """Number of tokens to cluster in each row of a `dpc_knn` case."""
    return tensors(case)["features"].shape[1] - (3 if case["params"]["valid_token_mask"] else 0)


def _e2e_exclusion(case: dict, behavior: str) -> str | None:
    if not case["robust"]:
        return "not robust"
    if case["kind"] == "vanilla":
        return None
    settings, result = case["flashvid"], case["result"]
    if settings["retention_ratio"] * settings["expansion"] >= 1 and settings["alpha"] < 1:
        return "budget reaches N"
    if behavior == "released":
        return None
    # No flag says whether a deviation affects the merging. Without merging none does, unless indices repeat.
    if settings["alpha"] < 1:
        return "merges"
    return "repeated index" if result["has_duplicates"] else None


def whole_model_exclusion(case: dict, behavior: str) -> str | None:
    """Like `exclusion`, for the results of a whole model: in some families the released code drops more columns."""
    reason = exclusion(case, behavior)
    if reason is None and case["family"] == "qwen3_vl" and case["kind"] != "vanilla":
        if behavior == "paper":
            return "vision_start and vision_end dropped"
        if case["flashvid"]["retention_ratio"] * case["flashvid"]["expansion"] >= 1:  # our model is then upstream's
            return "budget reaches N"
    if reason is None and case["family"] == "llava" and case["kind"] != "vanilla" and behavior == "paper":
        return "newlines prunable" if case["config_overrides"]["mm_newline_position"] == "frame" else None
    return reason


@cache
def llava_folder(pool_mode: str, newline_position: str) -> Path:
    """The recorded LLaVA model as its original code saves it: unchanged weights, and a complete `config.json`."""
    source = ROOT / "e2e" / "llava"
    vision = json.loads((source / "vision_config.json").read_text())
    config = {
        **json.loads((source / "config.json").read_text()),
        "model_type": "llava_qwen",
        "mm_spatial_pool_mode": pool_mode,
        "mm_newline_position": newline_position,
        # The original removes the last layer when it loads the tower.
        "vision_config": {
            **vision,
            "model_type": "siglip_vision_model",
            "num_hidden_layers": vision["num_hidden_layers"] - 1,
            "vision_use_head": False,
        },
        "image_token_index": 197,  # an id that no recorded prompt has
        "video_token_index": 198,
    }
    folder = Path(tempfile.mkdtemp(prefix="flashvid-llava-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copyfile(source / "model.safetensors", folder / "model.safetensors")
    return folder


def fitting_order(indices: torch.Tensor, rows: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The order of rows (M, D) in which the rows of repeated indices fit the expected ones best."""
    order = torch.arange(len(indices))
    for index in indices[1:][indices.diff() == 0].unique():
        places = (indices == index).nonzero()[:, 0]
        orders = [torch.tensor(places) for places in itertools.permutations(places.tolist())]
        order[places] = min(orders, key=lambda order: (rows[order] - expected[places]).abs().max().item())
    return order


def largest_difference(indices: torch.Tensor, rows: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference of two lists of rows (M, D), with rows of a repeated index in the order that fits best."""
    return (rows[fitting_order(indices, rows, expected)] - expected).abs().max().item()
