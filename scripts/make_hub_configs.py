"""Write the folders of `hub_configs/`: a recipe for each published model, and the code of the trained demo.

There is one recipe for each published size in the records of the families. It holds FlashVID's part of a repository:
the settings, the names of the code, the base's id, the card, and published accuracy in the Hub's format. Everything
else is read from the base when a repository is built from the recipe. The demo is a complete repository: the files that
its training wrote stay as they are, and the code beside them is generated from the package.

    python scripts/make_hub_configs.py            # writes
    python scripts/make_hub_configs.py --check    # compares, and names the first file that differs
"""

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from flashvid_hf.families import FAMILIES, FAMILIES_BY_NAME
from flashvid_hf.models.configuration import default_llm_retention_ratio, default_pruning_layer
from flashvid_hf.publishing.export import processor_pointer
from flashvid_hf.publishing.model_card import CardFacts, render_card
from flashvid_hf.publishing.published_accuracy import render_eval_results
from flashvid_hf.publishing.published_code import published_files
from flashvid_hf.video.pipeline_flashvid import CUSTOM_PIPELINES

ROOT = Path(__file__).resolve().parent.parent
# The organisation in the names of the recipes. A proposal: nothing has been published.
NAMESPACE = "flashvid-hf"
RETENTION_RATIO = 0.1  # of the recipes; the smallest ratio of the paper's tables
DEMO, DEMO_FAMILY = "flashvid-demo", "qwen2_5_vl"
# The files that `train_demo_model.py` wrote. Only that script can write them again.
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
    """A folder of `hub_configs/`.

    Args:
        base, num_layers: see `PublishedSize`.
        family: the name of the family.
    """

    base: str
    family: str
    num_layers: int

    @property
    def name(self) -> str:
        return f"FlashVID-{self.base.split('/')[-1]}"

    @property
    def classes(self) -> Any:
        return FAMILIES_BY_NAME[self.family]


RECIPES = tuple(
    Recipe(size.base, family.name, size.num_layers) for family in FAMILIES for size in family.published_sizes
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

So is the code: at most six files, [generated](../CONTRIBUTING.md#published-code) from the package that builds it.

[`{demo}`]({demo}) is a complete repository, with code and weights: a small model of this project's own, trained
on synthetic videos by [`scripts/demo_model/train_demo_model.py`](../scripts/demo_model/train_demo_model.py).
`make demo` asks it.

[`scripts/make_hub_configs.py`](../scripts/make_hub_configs.py) (`make hub-configs`) writes the recipes from the sizes
in the families' records (`flashvid_hf/models/*/family_*.py`) and the demo's code from the package, and a test compares
the folders with what it writes. `retention_ratio` is {ratio} in all recipes; `pruning_layer` and `llm_retention_ratio`
follow from the number of layers, so that {ratio} is the average over them.

{table}

In `.eval_results/` the ids of the data sets are those that LMMs-Eval reads. The ids of their tasks are `default`:
whether the Hub knows these data sets as benchmarks, and by which tasks, has not been compared with the Hub.
"""


def make_settings(config_class: Any, num_layers: int) -> dict[str, Any]:
    """The family's FlashVID fields at `RETENTION_RATIO`, including the values that follow from the depth."""
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
    processor_config = {**processor_pointer(family), **family.processing}
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
    code = published_files(FAMILIES_BY_NAME[DEMO_FAMILY])
    files.update({f"{DEMO}/{name}": text for name, text in code.items()})
    for recipe in RECIPES:
        files.update({f"{recipe.name}/{path}": text for path, text in make_recipe(recipe).items()})
    return files


def find_difference(folder: Path) -> str | None:
    """The fault of the first file that is missing, changed or not made by this script; `None` if there is no fault."""
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
    # After writing, only files that this script did not write can differ. They stay: they may be someone's work.
    if difference := find_difference(options.folder):
        sys.exit(
            f"{difference}. {'Run `make hub-configs` and look at what changes' if options.check else 'Remove it'}."
        )


if __name__ == "__main__":
    main()
