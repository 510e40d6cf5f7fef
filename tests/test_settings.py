"""A setting is defined once, at its field. Texts that must repeat it are compared with the field here."""

import inspect
import json
import re
from dataclasses import MISSING, dataclass, fields, replace
from fractions import Fraction
from pathlib import Path

import pytest

from flashvid_hf import FAMILIES, CompressionConfig, flashvid
from flashvid_hf.compression import validation
from flashvid_hf.compression.validation import Setting, check_settings, same_setting, setting, settings_of
from flashvid_hf.methods.compression_method import CompressionMethod, LatePruning
from flashvid_hf.methods.flashvid import FlashVID
from flashvid_hf.methods.registry import METHODS, available_methods
from flashvid_hf.models.configuration import CALL_FIELDS, FlashVIDConfigMixin
from flashvid_hf.publishing.model_card import SETTINGS

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()

# The values of the reference and the paper, written out again: name, default, range. So every change is noticed.
EXPECTED = {
    "compression_method": ("flashvid", "a name in `flashvid_hf.available_methods()`"),
    "method_settings": (None, "a dictionary, `null`"),
    "retention_ratio": (0.25, "above 0, at most 1"),
    "expansion": (1.25, "at least 1"),
    "pruning_layer": (None, "at least 1, `null`"),
    "llm_retention_ratio": (None, "above 0, at most 1, `null`"),
    "alpha": (0.7, "at least 0, at most 1"),
    "token_selection_method": ("attn_div_v2", "`attn`, `div`, `attn_div`, `attn_div_v2`"),
    "temporal_threshold": (0.8, "at least -1"),
    "do_segment": (True, "`true`, `false`"),
    "segment_threshold": (0.9, "at least -1"),
    "min_segment_num": (8, "at least 1"),
    "complementary_segment": (True, "`true`, `false`"),
    "behavior": ("paper", "`paper`, `released`"),
    "vision_chunk_size": (32, "at least 1, `null`"),
    "mm_spatial_pool_mode": ("average", "`average`, `bilinear`, `max`"),
    "mm_newline_position": ("frame", "`frame`, `grid`, `one_token`, `no_token`"),
}
# Defaults of families that follow their own script of the reference.
OF_QWEN = {"token_selection_method": "attn_div", "min_segment_num": 4}


def defaults_of(owner) -> dict:
    return {field.name: field.default for field in fields(owner)}


def test_the_settings_are_the_reference_s():
    assert {name: found.allowed for name, found in SETTINGS.items()} == {
        name: allowed for name, (_, allowed) in EXPECTED.items()
    }
    assert all(found.meaning for found in SETTINGS.values())
    for family in FAMILIES:
        own = OF_QWEN if "qwen" in family.config.model_type else {}
        found = defaults_of(family.config)
        for name in family.config.method_fields:
            assert found[name] == getattr(family.config, name) == own.get(name, EXPECTED[name][0]), name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.config.model_type)
def test_configurations_have_the_settings_of_the_method_and_their_own(family):
    found = settings_of(family.config)
    assert found.keys() == family.config.method_fields >= CALL_FIELDS
    of_method = settings_of(FlashVID)
    assert found.keys() >= FlashVID.settings().keys() | {"retention_ratio"}
    for name in FlashVID.settings().keys() | {"retention_ratio"}:
        assert found[name] is of_method[name]
        assert getattr(FlashVIDConfigMixin, name) == defaults_of(FlashVID)[name]


def test_the_compression_and_the_methods_state_a_setting_once():
    for name, found in settings_of(CompressionConfig).items():
        assert settings_of(FlashVID)[name] is found
        assert defaults_of(FlashVID)[name] == defaults_of(CompressionConfig)[name]
    for method in METHODS.values():
        assert settings_of(method).keys() == {field.name for field in fields(method)}
        assert settings_of(method)["retention_ratio"] is settings_of(CompressionConfig)["retention_ratio"]


def test_the_arguments_of_the_drop_in():
    """The signature is written out, and differs in two places, where it has the reference's own defaults."""
    parameters = dict(inspect.signature(flashvid).parameters)
    del parameters["model"]
    assert parameters.keys() == CALL_FIELDS
    of_reference = {"pruning_layer": 20, "llm_retention_ratio": 0.3}
    for name, parameter in parameters.items():
        assert parameter.default == of_reference.get(name, getattr(FlashVIDConfigMixin, name)), name
    for field in fields(CompressionConfig):
        assert parameters[field.name].annotation == field.type, field.name


def table_rows() -> list[str]:
    """The rows of the README's table: name, default of the families, range and meaning."""
    rows = []
    for name, found in SETTINGS.items():
        defaults: dict[str, list[str]] = {}
        for family in FAMILIES:
            if name in family.config.method_fields:
                brand = "Qwen" if "qwen" in family.config.model_type else "LLaVA"
                brands = defaults.setdefault(json.dumps(getattr(family.config, name)).strip('"'), [])
                brands += [brand] * (brand not in brands)
        shared = len(defaults) == 1
        cells = [f"`{value}`" if shared else f"{', '.join(brands)}: `{value}`" for value, brands in defaults.items()]
        meaning = found.meaning.format(layers="the number of layers")
        rows.append(f"| `{name}` | {', '.join(cells)} | {found.allowed} | {meaning} |")
    return rows


def test_the_table_of_the_readme():
    expected = "\n".join(["| field | default | range | meaning |", "|---|---|---|---|", *table_rows()])
    assert f"\n\n{expected}\n\n" in README, f"README.md, section Settings, must have this table:\n{expected}"


def test_the_readme_says_where_the_families_prune():
    depths = {str(Fraction(family.config.pruning_depth).limit_denominator(100)) for family in FAMILIES}
    (told,) = re.findall(r"`pruning_layer` lies at (\S+) of the depth, in Qwen3-VL at (\S+)\.", README)
    assert set(told) == depths
    for family in FAMILIES:
        expected = told["qwen3" in family.config.model_type]
        assert Fraction(family.config.pruning_depth).limit_denominator(100) == Fraction(expected)


def test_the_readme_names_every_method():
    table = re.search(r"\| `compression_method` \| before .*?(?=\n\n)", README, re.DOTALL).group()
    told = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(told) == sorted(available_methods())


# The record itself


@dataclass(frozen=True, kw_only=True)
class Base:
    """A dataclass with a setting of every kind."""

    share: float = setting(0.5, "a share", above=0, most=1)
    count: int | None = setting(None, "how many", least=2, integer=True, optional=True)
    mode: str = setting("a", "what happens", choices=("a", "b"))
    free: str = setting("x", "anything", words="whatever there is")
    unchecked: int = 3

    def __post_init__(self):
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    """It has another default and the same range."""

    share: float = 0.25


@dataclass(frozen=True, kw_only=True)
class Other:
    """A setting of another class."""

    share: float = same_setting(Derived, "share")

    def __post_init__(self):
        check_settings(self)


@pytest.mark.parametrize("owner", [Base, Derived, Other])
def test_a_setting_keeps_its_range(owner):
    for value in (0, 1.5, None, "0.5", True, float("nan")):
        with pytest.raises(ValueError, match=f"^`share` is {value!r}: it must be a number above 0 and at most 1. Set"):
            owner(share=value)
    assert owner(share=1).share == 1 and owner().share == (0.5 if owner is Base else 0.25)


def test_every_kind_of_setting():
    assert list(settings_of(Derived)) == ["share", "count", "mode", "free"]
    assert Base().count is None and Base(count=2).count == 2 and Base(free=None, unchecked="?").free is None
    for field, value, allowed in (
        ("count", 1, "an integer at least 2"),
        ("count", 2.0, "an integer at least 2"),
        ("mode", "c", "one of 'a', 'b'"),
        ("mode", None, "one of 'a', 'b'"),
    ):
        with pytest.raises(ValueError, match=f"^`{field}` is {value!r}: it must be {allowed}. Set `{field}` to"):
            Base(**{field: value})
        with pytest.raises(ValueError, match=f"^`{field}` is"):
            replace(Base(), **{field: value})
    assert [found.allowed for found in settings_of(Base).values()] == [
        "above 0, at most 1",
        "at least 2, `null`",
        "`a`, `b`",
        "whatever there is",
    ]


@pytest.mark.parametrize("name", available_methods())
def test_a_changed_range_is_obeyed(name, monkeypatch):
    """No method has its own ranges: without the record, everything is accepted except wrong combinations."""
    monkeypatch.setattr(Setting, "check", lambda self, name, value: None)
    method = METHODS[name]
    for field in settings_of(method).keys() - {"num_layers", "first_pruning_layer", "retention_ratio"}:
        if field in ("pruning_layer", "llm_retention_ratio", "expansion"):  # the method computes with them
            continue
        assert getattr(method(**{field: "nonsense"}), field) == "nonsense"
    assert validation.settings_of(LatePruning).keys() >= settings_of(CompressionMethod).keys()
    assert MISSING not in defaults_of(method).values()
