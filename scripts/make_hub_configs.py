"""Write the folders of `hub_configs/`: a recipe for each published model, and the code of the trained demo.

A recipe, from the table below, holds what is FlashVID's: its settings, the names of the code, the base's id, the card,
and published accuracy in the Hub's format. What belongs to the base is read from the base when a repository is built
from the recipe. The demo is a complete repository: what its training wrote stays as it is, and the code beside it
follows the package.

    python scripts/make_hub_configs.py            # writes
    python scripts/make_hub_configs.py --check    # compares, and names the first file that differs
"""

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from flashvid_hf.families import family_of_type
from flashvid_hf.models.configuration import default_llm_retention_ratio, default_pruning_layer
from flashvid_hf.publishing.export import processor_pointer
from flashvid_hf.publishing.model_card import CardFacts, render_card
from flashvid_hf.publishing.published_accuracy import render_eval_results
from flashvid_hf.publishing.published_code import published_files
from flashvid_hf.video.pipeline_flashvid import CUSTOM_PIPELINES

ROOT = Path(__file__).resolve().parent.parent
# Only a proposal: nothing has been published.
NAMESPACE = "flashvid-hf"
RETENTION_RATIO = 0.1
# What differs from the base's processor. Upstream warns where this is not said, as its default is going to change.
QWEN_PROCESSING = {"video_processor": {"cap_pixels_per_frame": False}}
PROCESSING = {"qwen2_5_vl": QWEN_PROCESSING, "qwen3_vl": QWEN_PROCESSING, "qwen3_vl_moe": QWEN_PROCESSING}
DEMO, DEMO_FAMILY = "flashvid-demo", "qwen2_5_vl"
# What `train_demo_model.py` wrote, and only it can write again.
TRAINED_FILES = (
    "README.md",
    "accuracy.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


class Recipe(NamedTuple):
    """A row of the table.

    Args:
        base: the base's id on the Hub.
        family: its `model_type` here, without "flashvid_".
        num_layers: layers of its language model. The bases' own configurations were not at hand: the comments say
            where each comes from, and building a repository compares it with the base's.
    """

    base: str
    family: str
    num_layers: int

    @property
    def name(self) -> str:
        return f"FlashVID-{self.base.split('/')[-1]}"

    @property
    def classes(self) -> Any:
        return family_of_type(f"flashvid_{self.family}")


RECIPES = (
    # A public copy of the base's config.json.
    Recipe("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl", 36),
    # FlashVID's paper and scripts (K = 20 of L = 28).
    Recipe("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl", 28),
    # The model cards of the language models that they start from, Qwen/Qwen2.5-32B and Qwen/Qwen2.5-72B.
    Recipe("Qwen/Qwen2.5-VL-32B-Instruct", "qwen2_5_vl", 64),
    Recipe("Qwen/Qwen2.5-VL-72B-Instruct", "qwen2_5_vl", 80),
    # Public code that loads the checkpoint (28 blocks of width 2048, as in Qwen/Qwen3-1.7B).
    Recipe("Qwen/Qwen3-VL-2B-Instruct", "qwen3_vl", 28),
    # Public notes taken from the base's config.json (width 2560, 36 layers).
    Recipe("Qwen/Qwen3-VL-4B-Instruct", "qwen3_vl", 36),
    # FlashVID's scripts (K = 28 of L = 36).
    Recipe("Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl", 36),
    # Public notes taken from the base's config.json (width 5120, 64 layers).
    Recipe("Qwen/Qwen3-VL-32B-Instruct", "qwen3_vl", 64),
    # Public tests that quote the base's config.json (128 experts, 48 layers).
    Recipe("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3_vl_moe", 48),
    # config.json of the language models that the LLaVA models start from: Qwen/Qwen2-0.5B, -7B and -72B.
    Recipe("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava_onevision", 24),
    Recipe("llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava_onevision", 28),
    Recipe("llava-hf/llava-onevision-qwen2-72b-ov-hf", "llava_onevision", 80),
    Recipe("lmms-lab/LLaVA-Video-7B-Qwen2", "llava_video", 28),
    Recipe("lmms-lab/LLaVA-Video-72B-Qwen2", "llava_video", 80),
)

FOLDER_README = """\
# Hub repositories

One folder for each model that is meant for the Hub. **Nothing has been published**: `{namespace}` is a proposed name,
and no folder has been built from its real base yet.

A folder is a recipe. It holds only what is FlashVID's:

- `config.json`: FlashVID's settings, `model_type`, `architectures`, `auto_map`, `custom_pipelines` and the base's id;
- `processor_config.json`: leads to the base's processor, with the settings that differ;
- `README.md`: the model card;
- `.eval_results/`: accuracy that FlashVID's authors published for this model, in the Hub's format, where there is any.

What belongs to the base (its configuration, tokenizer, processor, licence, and the commit to pin) is read from the base
when a repository is built, and the number of layers below is compared with the base's:

```console
flashvid-hf export hub_configs/{example} build/{example}
```

[`{demo}`]({demo}) is a complete repository, with code and weights: a small model of this project's own, trained
on synthetic videos by [`scripts/demo_model/`](../scripts/demo_model/train_demo_model.py). `make demo` asks it.

[`scripts/make_hub_configs.py`](../scripts/make_hub_configs.py) (`make hub-configs`) writes the recipes from one table
and the demo's code from the package, and a test compares the folders with what it writes. `retention_ratio` is {ratio}
in all recipes; `pruning_layer` and `llm_retention_ratio` follow from the number of layers, so that {ratio} is the
average over them.

{table}

In `.eval_results/` the ids of the data sets are those that LMMs-Eval reads. The ids of their tasks are `default`:
whether the Hub knows these data sets as benchmarks, and by which tasks, has not been compared with the Hub.
"""


def make_settings(config_class: Any, num_layers: int) -> dict[str, Any]:
    """The family's FlashVID fields at `RETENTION_RATIO`, with what follows from the depth."""
    names = [field.name for field in fields(config_class) if field.name in config_class.method_fields]
    settings = {name: getattr(config_class, name) for name in names}
    layer = default_pruning_layer(num_layers, settings["expansion"], config_class.pruning_depth)
    return {
        **settings,
        "retention_ratio": RETENTION_RATIO,
        "pruning_layer": layer,
        "llm_retention_ratio": default_llm_retention_ratio(num_layers, layer, settings["expansion"]),
    }


def make_recipe(recipe: Recipe) -> dict[str, str]:
    """The text of every file of a recipe, by path in its folder."""
    family = recipe.classes
    settings = make_settings(family.config, recipe.num_layers)
    config = {
        "architectures": [family.generative_model.__name__],
        "model_type": family.config.model_type,
        "auto_map": family.config.auto_classes,
        "custom_pipelines": CUSTOM_PIPELINES,
        "base_model_name_or_path": recipe.base,
        **settings,
    }
    facts = CardFacts(
        repository=f"{NAMESPACE}/{recipe.name}",
        family=recipe.family,
        settings=settings,
        num_layers=recipe.num_layers,
        base=recipe.base,
    )
    processor_config = {**processor_pointer(family), **PROCESSING.get(recipe.family, {})}
    return {
        "config.json": json.dumps(config, indent=2) + "\n",
        "processor_config.json": json.dumps(processor_config, indent=2) + "\n",
        "README.md": render_card(facts),
        **render_eval_results(recipe.base, RETENTION_RATIO),
    }


def make_readme() -> str:
    rows = ["| folder | layers | `pruning_layer` | `llm_retention_ratio` |", "|---|---|---|---|"]
    for recipe in RECIPES:
        settings = make_settings(recipe.classes.config, recipe.num_layers)
        shown = (recipe.num_layers, settings["pruning_layer"], settings["llm_retention_ratio"])
        rows.append(f"| [`{recipe.name}`]({recipe.name}) | {' | '.join(map(str, shown))} |")
    example = RECIPES[0].name
    return FOLDER_README.format(
        namespace=NAMESPACE, example=example, demo=DEMO, ratio=RETENTION_RATIO, table="\n".join(rows)
    )


def make_files() -> dict[str, str]:
    """The text of every file of `hub_configs/` but the demo's trained ones, by path."""
    files = {"README.md": make_readme()}
    code = published_files(family_of_type(f"flashvid_{DEMO_FAMILY}"))
    files.update({f"{DEMO}/{name}": text for name, text in code.items() if not name.startswith("processing_")})
    for recipe in RECIPES:
        files.update({f"{recipe.name}/{path}": text for path, text in make_recipe(recipe).items()})
    return files


def find_difference(folder: Path) -> str | None:
    """What is wrong with the first file that is missing, changed or not from here; `None` if all are as made."""
    made, trained = make_files(), {f"{DEMO}/{name}" for name in TRAINED_FILES}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for path in sorted(made.keys() | trained | found):
        if path not in found:
            return f"{folder / path} is missing"
        if path not in made.keys() | trained:
            return f"{folder / path} is not written by this script"
        if path in made and (folder / path).read_bytes() != made[path].encode():
            return f"{folder / path} differs from what this script writes"
    return None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "hub_configs")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file differs")
    options = parser.parse_args(arguments)
    if not options.check:
        for path, text in make_files().items():
            target = options.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text.encode())
        print(f"wrote {len(RECIPES)} recipes and the demo's code to {options.folder}")
    # After writing only what this script did not write can differ. It is left there: it may be someone's work.
    if difference := find_difference(options.folder):
        sys.exit(
            f"{difference}. {'Run `make hub-configs` and look at what changes' if options.check else 'Remove it'}."
        )


if __name__ == "__main__":
    main()
