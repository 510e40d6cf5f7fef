"""A Hub cache as downloads leave it, with tiny models in place of the bases that `hub_configs/` names."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints import build_upstream_folder, run_program
from originals import original_weights, write_original

HUB_CONFIGS = Path(__file__).resolve().parent.parent / "hub_configs"


def _find_recipes() -> dict[str, Path]:
    """For each family the recipe whose base has the fewest layers; that base prunes first."""
    configs = {path.parent: json.loads(path.read_text()) for path in sorted(HUB_CONFIGS.glob("*/config.json"))}
    recipes: dict[str, Path] = {}
    for folder, config in sorted(configs.items(), key=lambda item: item[1]["pruning_layer"]):
        if "base_model_name_or_path" in config:  # the trained demo has no base
            recipes.setdefault(config["model_type"].removeprefix("flashvid_"), folder)
    return recipes


# The folder of one recipe for each family.
RECIPES = _find_recipes()
PINNED, LATER = "a" * 40, "b" * 40  # commits of every base
HUB_ID = "acme/FlashVID-tiny"
CARD = "---\nlicense: apache-2.0\n---\n# A tiny base with random weights\n"


def recipe_of(family: str) -> Path:
    """The folder of the family's recipe."""
    return RECIPES[family]


def base_of(family: str) -> str:
    """The Hub id of the base that the recipe names."""
    return json.loads((recipe_of(family) / "config.json").read_text())["base_model_name_or_path"]


def num_layers_of(family: str) -> int:
    """Number of layers in the language model of that base."""
    from flashvid_hf.families import family_named

    return next(size.num_layers for size in family_named(family).published_sizes if size.base == base_of(family))


def build_base(folder: Path, family: str, seed: int = 0) -> Path:
    """Write a tiny checkpoint in the layout of the recipe's base, with the same number of layers."""
    from flashvid_hf.families import family_named
    from flashvid_hf.tiny_models import build_tokenizer, upstream_fields

    num_layers = num_layers_of(family)
    if not family_named(family).has_upstream_checkpoints:
        weights = original_weights(seed=seed, num_hidden_layers=num_layers)
        write_original(folder, weights, num_hidden_layers=num_layers)
    else:
        text = upstream_fields(build_tokenizer(family), family)["text_config"]
        build_upstream_folder(folder, family, seed, text_config={**text, "num_hidden_layers": num_layers})
    (folder / "README.md").write_text(CARD)
    return folder


def add_repository(home: Path, repository: str, **commits: tuple[str, Callable[[Path], Any]]) -> None:
    """Put a repository into the cache of an HF_HOME.

    Args:
        commits: for each revision the commit, and the function that fills its folder.
    """
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    for revision, (commit, fill) in commits.items():
        if not (folder / "snapshots" / commit).exists():
            (folder / "snapshots").mkdir(parents=True, exist_ok=True)
            fill(folder / "snapshots" / commit)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / revision).write_text(commit)


def change_config(folder: Path, **fields: Any) -> None:
    """Set fields of `config.json`."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


# The configuration of a quantized base that needs nothing but transformers.
BITNET = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}


def build_quantized_base(folder: Path) -> None:
    build_base(folder, "qwen2_5_vl")
    change_config(folder, quantization_config=BITNET)


# Runs with the package, and builds a folder of every kind for every family.
EXPORT = """
from pathlib import Path

from hub_cache import RECIPES, recipe_of

from flashvid_hf.publishing.export import export_model

work = Path(arguments[0])
for family in RECIPES:
    for weights in ("base", "included"):
        export_model(recipe_of(family), work / f"{family}-{weights}", weights=weights, revision="v1")
export_model("acme/quantized-base", work / "quantized")
"""


def fill_work(work: Path) -> None:
    """Fill a Hub cache in `work/home`, and export every recipe to `work/<family>-base` and `work/<family>-included`.

    The cache has the bases, and the first weightless folder as `HUB_ID`.
    """
    work.mkdir()
    home = work / "home"
    add_repository(home, "acme/quantized-base", main=("e" * 40, build_quantized_base))
    for family in RECIPES:
        add_repository(
            home,
            base_of(family),
            # When the folders are built, "v1" is that commit; "main" has other weights.
            v1=(PINNED, lambda folder, family=family: build_base(folder, family, seed=1)),
            main=(LATER, lambda folder, family=family: build_base(folder, family, seed=2)),
        )
    run_program(EXPORT, work, home=home, with_package=True)
    other = {"retention_ratio": 0.75, "llm_retention_ratio": 0.5}
    add_repository(
        home,
        HUB_ID,
        v1=("c" * 40, lambda folder: shutil.copytree(work / "qwen2_5_vl-base", folder)),
        main=("d" * 40, lambda folder: change_config(shutil.copytree(work / "qwen2_5_vl-base", folder), **other)),
    )
