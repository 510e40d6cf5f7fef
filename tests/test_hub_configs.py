"""The recipes of `hub_configs/`: they are as the script makes them, and consistent."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import make_hub_configs
import numpy as np
import pytest
import yaml
from architectures import qwen2_5_pixels, qwen3_pixels
from huggingface_hub import ModelCard, parse_eval_result_entries
from make_hub_configs import NAMESPACE, RECIPES, main, make_settings

from flashvid_hf.publishing.model_card import SETTINGS, CardFacts, count_tokens, render_card
from flashvid_hf.publishing.published_accuracy import PUBLISHED, render_eval_results
from flashvid_hf.publishing.versions import REQUIREMENTS, TESTED_TRANSFORMERS

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "hub_configs"
# The fields of a recipe's configuration that are not FlashVID's.
COMMON_KEYS = {"architectures", "model_type", "auto_map", "custom_pipelines", "base_model_name_or_path"}
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def read_config(recipe) -> dict:
    return json.loads((FOLDER / recipe.name / "config.json").read_text())


def make_facts(recipe=RECIPES[1], settings=None, **facts) -> CardFacts:
    """The facts of a recipe; by default of that for Qwen2.5-VL 7B."""
    made = {
        "repository": f"{NAMESPACE}/{recipe.name}",
        "family": recipe.family,
        "settings": {**make_settings(recipe.classes.config, recipe.num_layers), **(settings or {})},
        "num_layers": recipe.num_layers,
        "base": recipe.base,
    }
    return CardFacts(**{**made, **facts})


def find_recipe(base: str):
    return next(recipe for recipe in RECIPES if recipe.base == base)


def read_snippets(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)


def test_folder_is_what_the_script_makes():
    main(["--check"])


def test_check_finds_changed_missing_and_extra_files(tmp_path):
    def complain(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--folder", str(tmp_path)])
        return str(stopped.value)

    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    main(["--check", "--folder", str(tmp_path)])
    config = tmp_path / RECIPES[0].name / "config.json"
    config.write_text(config.read_text().replace("0.1,", "0.2,"))
    assert f"{config} differs" in complain("--check")
    config.unlink()
    assert f"{config} is missing" in complain("--check")
    main(["--folder", str(tmp_path)])
    extra = config.with_name("generation_config.json")
    extra.write_text("{}")
    assert f"{extra} is not written" in complain("--check")
    assert f"{extra} is not written" in complain()
    assert extra.exists()


@each_recipe
def test_recipe_keeps_the_ratio_on_average_over_the_layers(recipe):
    config = read_config(recipe)
    entered = config["retention_ratio"] * config["expansion"]
    seen = [
        entered if layer < config["pruning_layer"] else entered * config["llm_retention_ratio"]
        for layer in range(recipe.num_layers)
    ]
    assert sum(seen) / recipe.num_layers == pytest.approx(config["retention_ratio"], abs=1e-4)
    assert config["retention_ratio"] == 0.1 and 0 < config["pruning_layer"] < recipe.num_layers


@each_recipe
def test_recipe_loads_into_the_family_and_has_only_its_fields(recipe):
    config, config_class = read_config(recipe), recipe.classes.config
    assert config.keys() == COMMON_KEYS | config_class.method_fields
    kind = {name: value for name, value in recipe.classes.small.text.items() if name == "model_type"}
    text = {"num_hidden_layers": recipe.num_layers, **kind}
    loaded = config_class.from_dict({**config, "text_config": text})
    assert {name: getattr(loaded, name) for name in config_class.method_fields} == {
        name: config[name] for name in config_class.method_fields
    }
    # If values that follow from the depth are left out, the family derives them, and other depths give other values.
    derived = config_class.from_dict({"text_config": text}, retention_ratio=config["retention_ratio"])
    assert {name: getattr(derived, name) for name in config_class.method_fields} == {
        name: config[name] for name in config_class.method_fields
    }
    depths = [depth for depth in range(8, 129) if make_settings(config_class, depth).items() <= config.items()]
    assert depths == [recipe.num_layers]


@each_recipe
def test_card(recipe):
    text = (FOLDER / recipe.name / "README.md").read_text()
    metadata = ModelCard(text).data
    assert metadata.base_model == recipe.base
    assert (metadata.library_name, metadata.pipeline_tag) == ("transformers", "video-text-to-text")
    assert {"video", "flashvid"} <= set(metadata.tags)
    assert f"https://huggingface.co/{recipe.base}" in text and "weights are unchanged" in text
    snippets = read_snippets(text)
    assert len(snippets[0].splitlines()) <= 12
    for snippet in snippets:
        compile(snippet, recipe.name, "exec")
        assert f'"{NAMESPACE}/{recipe.name}"' in snippet
    assert ("no figures of the authors" in text) == (recipe.base not in PUBLISHED)
    for name in recipe.classes.config.method_fields:
        assert f"| `{name}` |" in text


def test_every_published_model_has_a_recipe_with_results_that_the_hub_library_reads():
    with_results = {path.parent.parent.name for path in FOLDER.glob("*/.eval_results/*.yaml")}
    assert with_results == {find_recipe(base).name for base in PUBLISHED}
    for base, published in PUBLISHED.items():
        folder = FOLDER / find_recipe(base).name / ".eval_results"
        entries = [
            entry for path in folder.iterdir() for entry in parse_eval_result_entries(yaml.safe_load(path.read_text()))
        ]
        row = next(row for row in published.accuracies if row.percent == 10)
        assert {entry.dataset_id: entry.value for entry in entries} == {
            "lmms-lab/Video-MME": row.video_mme,
            "longvideobench/LongVideoBench": row.long_video_bench,
            "OpenGVLab/MVBench": row.mv_bench,
        }
        for entry in entries:
            assert entry.source_url == "https://arxiv.org/abs/2602.08024" and entry.source_name
            assert "Not measured with this repository" in entry.notes


def test_published_rows_agree_with_their_own_averages():
    """The paper averages VideoMME, EgoSchema's total, LongVideoBench and MVBench. The test finds typing errors."""
    for published in PUBLISHED.values():
        whole = published.accuracies[0]
        for row in published.accuracies:
            mean = (row.video_mme + row.ego_schema[1] + row.long_video_bench + row.mv_bench) / 4
            assert row.average == pytest.approx(mean, abs=0.11)
            assert row.relative == pytest.approx(100 * row.average / whole.average, abs=0.2)


def test_results_only_where_the_paper_has_the_ratio():
    base = "Qwen/Qwen2.5-VL-7B-Instruct"
    assert len(render_eval_results(base, 0.25)) == 3
    for other in ((base, 0.12), (base, 1.0), ("Qwen/Qwen2.5-VL-3B-Instruct", 0.1), (None, 0.1)):
        assert render_eval_results(*other) == {}


@pytest.mark.parametrize(("family", "processor"), [("qwen2_5_vl", qwen2_5_pixels), ("qwen3_vl", qwen3_pixels)])
def test_the_cards_token_counts_are_those_of_upstreams_processor(family, processor):
    frames = np.zeros((6, 448, 448, 3), dtype=np.uint8)
    made = processor()(videos=[frames], do_sample_frames=False, return_tensors="pt")
    facts = make_facts(next(recipe for recipe in RECIPES if recipe.family == family))
    assert count_tokens(facts, 6)[0] == made["video_grid_thw"].prod().item() // 4


@pytest.mark.parametrize(
    ("base", "num_frames", "counts"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", 32, (16 * 256, 16 * 32, 154)),
        ("Qwen/Qwen3-VL-8B-Instruct", 32, (16 * 196, 16 * 25, 40)),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", 32, (32 * 196 + 1, 32 * 25 + 1, 240 + 1)),
        ("lmms-lab/LLaVA-Video-7B-Qwen2", 64, (64 * 170, 64 * 22 + 64, math.ceil(0.3 * 64 * 22) + 64)),
    ],
)
def test_token_counts(base, num_frames, counts):
    facts = make_facts(find_recipe(base))
    assert count_tokens(facts, num_frames) == counts
    assert f"| {num_frames} | {' | '.join(f'{count:,}' for count in counts)} |" in render_card(facts)


def test_token_counts_follow_the_settings():
    total, entered, remained = count_tokens(make_facts(settings={"pruning_layer": 28}), 32)
    assert remained == entered < total
    assert count_tokens(make_facts(settings={"retention_ratio": 1.0}), 32) == (4096,) * 3
    assert count_tokens(make_facts(settings={"behavior": "released"}), 32) is None
    assert "depend on the video" in render_card(make_facts(settings={"behavior": "released"}))
    video = find_recipe("lmms-lab/LLaVA-Video-7B-Qwen2")
    assert count_tokens(make_facts(video, settings={"mm_newline_position": "grid"}), 32) is None
    assert count_tokens(make_facts(video, settings={"mm_spatial_pool_mode": "bilinear"}), 1)[0] == 197


def test_card_of_a_built_repository():
    license = {"license": "other", "license_name": "qwen-research", "license_link": "LICENSE"}
    text = render_card(make_facts(base_revision="0123abc", license=license))
    data = ModelCard(text).data
    assert (data.license, data.license_name) == ("other", "qwen-research")
    link = f"https://huggingface.co/{RECIPES[1].base}/blob/main/LICENSE"
    assert data.license_link == link and f"[qwen-research]({link})" in text
    assert "at commit `0123abc`" in text
    assert "states no licence" in render_card(make_facts(license={}))


def test_card_of_a_local_model_with_its_weights():
    text = render_card(make_facts(base=None, weights="included", repository="demo", measured="Measured: 1 s on a CPU."))
    assert ModelCard(text).data.base_model is None
    assert "The weights are in this repository." in text and "Measured: 1 s on a CPU." in text
    assert "huggingface.co" not in text and "base_model_revision" not in text
    assert "no measurement" not in text and "has not been run on these weights" not in text


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"family": "llama"}, "`family` is 'llama'"),
        ({"weights": "none"}, "`weights` is 'none'"),
        ({"num_layers": 0}, "`num_layers` is 0"),
        ({"base": None}, "`base` is None and `weights` is 'base'"),
    ],
)
def test_facts_that_do_not_fit_are_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        make_facts(**facts)


def test_settings_that_lack_a_field_are_refused():
    facts = make_facts()
    settings = {name: value for name, value in facts.settings.items() if name != "alpha"}
    with pytest.raises(ValueError, match="lacks alpha"):
        dataclasses.replace(facts, settings=settings)


def test_cards_name_the_requirements_of_the_package():
    project = (ROOT / "pyproject.toml").read_text()
    for requirement in REQUIREMENTS:
        assert f'"{requirement}"' in project
    for tested, name in zip(TESTED_TRANSFORMERS, ("constraints-oldest.txt", "constraints.txt"), strict=True):
        assert f"\ntransformers=={tested}\n" in (ROOT / name).read_text()
    assert make_hub_configs.RETENTION_RATIO == 0.1 and len(SETTINGS) == 17
