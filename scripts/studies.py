"""What `evaluate.py` compares: the lines of a study, each FlashVID's settings in a name."""

from typing import Any, NamedTuple

from flashvid_hf import available_methods


class Study(NamedTuple):
    """Settings to compare.

    Args:
        question: what it is to answer.
        lines: FlashVID's fields that differ from the model's configuration, by the name of the line; the first is the
            one that the others are compared with.
    """

    question: str
    lines: dict[str, dict[str, Any]]


# No pruning inside the language model: what enters stays, so nothing is expanded.
_NO_PRUNING = {"expansion": 1.0, "llm_retention_ratio": 1.0}

STUDIES = {
    # One entry for each study.
    "methods": Study(
        "Which method keeps the most at the same average share of tokens?",
        {name: {"compression_method": name} for name in available_methods() if name != "none"},
    ),
    "behaviors": Study(
        "Does the paper's algorithm do better than the released code?",
        {"paper": {}, "released": {"behavior": "released"}},
    ),
    "selection": Study(
        "Which way of selecting tokens is best (ADTS v1 is attn_div, v2 is attn_div_v2)?",
        {name: {"token_selection_method": name} for name in ("attn_div", "attn_div_v2", "div", "attn")},
    ),
    "ablation": Study(
        "What does each part contribute?",
        {
            "FlashVID": {},
            "without DySeg": {"do_segment": False},
            "ADTS alone": {"alpha": 1.0},
            "TSTM alone": {"alpha": 0.0},
            "no merging over time": {"temporal_threshold": 1.0},
            "no inner pruning": _NO_PRUNING,
            "ADTS alone, no inner pruning": {"alpha": 1.0, **_NO_PRUNING},
            "TSTM alone, no inner pruning": {"alpha": 0.0, **_NO_PRUNING},
        },
    ),
    "settings": Study(
        "Does a setting do better than the defaults?",
        {
            "defaults": {},
            **{f"alpha {value}": {"alpha": value} for value in (0.3, 0.5, 0.9)},
            **{f"temporal_threshold {value}": {"temporal_threshold": value} for value in (0.6, 0.7, 0.9)},
            **{f"segment_threshold {value}": {"segment_threshold": value} for value in (0.8, 0.95)},
            **{f"min_segment_num {value}": {"min_segment_num": value} for value in (1, 8)},
            **{f"expansion {value}": {"expansion": value} for value in (1.0, 1.1, 1.4)},
        },
    ),
}
