"""The model card of a FlashVID repository: facts in, the text of its README.md out."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from huggingface_hub import ModelCardData

from ..compression.compress_video import CompressionConfig, exact_num_tokens
from ..compression.validation import check_choice, check_number, settings_of
from ..families import FAMILIES_BY_NAME
from ..models.configuration import CALL_FIELDS
from ..models.family import Family
from .published_accuracy import PAPER_URL, PUBLISHED, Published
from .versions import INSTALLATION

# Tags by which the Hub finds the repository.
TAGS = ["video", "video-token-compression", "token-pruning", "flashvid"]
# Numbers of frames in the card's table of tokens, and their height and width in pixels: a multiple of the 28 or 32
# pixels that are the side of a Qwen token.
TABLE_FRAMES, TABLE_PIXELS = (16, 32, 64), 448

# The settings of all families by name.
SETTINGS = {
    name: setting for family in FAMILIES_BY_NAME.values() for name, setting in settings_of(family.config).items()
}

CITATION = """\
```bibtex
@inproceedings{fan2026flashvid,
  title     = {{FlashVID}: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token Merging},
  author    = {Fan, Ziyang and Chen, Keyu and Xing, Ruilong and Li, Yulin and Jiang, Li and Tian, Zhuotao},
  booktitle = {International Conference on Learning Representations},
  year      = {2026}
}
```"""  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """The facts that a card states about a repository.

    Args:
        repository: its id on the Hub, or the name of the folder.
        family: the name of its family, which is its `model_type` without "flashvid_".
        settings: the FlashVID fields of its `config.json`; other fields are ignored.
        num_layers: layers of the language model.
        base: the base model's id on the Hub; `None` if it is not on the Hub.
        base_revision: the commit of the base that the repository was built from; `None` until it is built.
        weights: "base" if the model loads them from the base, "included" if the repository has them.
        license: those of `license`, `license_name` and `license_link` that the base's own card has; `None` until the
            repository is built.
        measured: this project's own measurements as Markdown, with hardware; `None` if there are none.

    Raises:
        ValueError: a field is outside of its range, a setting is missing, or `weights` is "base" without a `base`.
    """

    repository: str
    family: str
    settings: Mapping[str, Any]
    num_layers: int
    base: str | None = None
    base_revision: str | None = None
    weights: str = "base"
    license: Mapping[str, Any] | None = None
    measured: str | None = None

    def __post_init__(self):
        check_choice("family", self.family, FAMILIES_BY_NAME)
        check_choice("weights", self.weights, ("base", "included"))
        check_number("num_layers", self.num_layers, least=1, integer=True)
        missing = sorted(CALL_FIELDS - self.settings.keys())
        if missing:
            raise ValueError(
                f"`settings` lacks {', '.join(missing)}: a card shows every FlashVID field. Pass the fields of the "
                "model's configuration."
            )
        if self.weights == "base" and self.base is None:
            raise ValueError(
                "`base` is None and `weights` is 'base': weights can be read only from a base that is on the Hub. "
                "Name its id, or include the weights."
            )

    @property
    def record(self) -> Family:
        """The record of the repository's family."""
        return FAMILIES_BY_NAME[self.family]

    @property
    def geometry_config(self) -> Any:
        """A configuration with the fields that the family's geometry reads: its vision fields and the settings."""
        return SimpleNamespace(**{**self.settings, "vision_config": SimpleNamespace(**self.record.published_vision)})


def render_card(facts: CardFacts) -> str:
    """The text of README.md. The same facts give the same text."""
    sections = (
        f"---\n{_metadata(facts)}\n---",
        _introduction(facts),
        f"## Tokens and speed\n\n{_tokens(facts)}\n\n{_speed(facts)}",
        f"## Install and run\n\n{_install(facts)}",
        f"## Settings\n\n{_settings(facts)}",
        f"## Without remote code\n\n{_without_remote_code(facts)}",
        f"## Pinning a revision\n\n{_pinning(facts)}",
        f"## Accuracy\n\n{_accuracy(facts)}",
        f"## Limits\n\n{_limits(facts)}",
        f"## Licence and citation\n\n{_license(facts)}\n\n{CITATION}",
    )
    return "\n\n".join(sections) + "\n"


def count_tokens(facts: CardFacts, num_frames: int) -> tuple[int, int, int] | None:
    """Video tokens at 448 x 448 pixels: from the vision tower, entering the language model, remaining in it.

    Returns:
        The three counts, newlines included, as the pipeline reports them; `None` if they depend on the video.
    """
    settings, geometry, shape = facts.settings, facts.record.geometry, facts.geometry_config
    config = CompressionConfig(**{field.name: settings[field.name] for field in fields(CompressionConfig)})
    if config.behavior != "paper" or geometry.drops_newlines(shape):
        return None
    num_grids = math.ceil(num_frames / geometry.frames_per_grid(shape))
    rows, columns = geometry.grid_of_pixels(shape, TABLE_PIXELS, TABLE_PIXELS)
    tokens, newlines = rows * columns, geometry.num_newlines(shape, num_grids, rows)
    total, entered = num_grids * tokens, exact_num_tokens(num_grids, tokens, config)
    prunes = config.retention_ratio * config.expansion < 1 and settings["pruning_layer"] < facts.num_layers
    remained = math.ceil(settings["llm_retention_ratio"] * entered) if prunes else entered
    return total + newlines, entered + newlines, remained + newlines


def _metadata(facts: CardFacts) -> str:
    """No `base_model_relation`: its values (adapter, merge, quantized, finetune) all mean that weights changed."""
    license = {name: value for name, value in _license_fields(facts).items() if value}
    data = ModelCardData(
        library_name="transformers", pipeline_tag="video-text-to-text", base_model=facts.base, tags=TAGS, **license
    )
    return data.to_yaml()


def _introduction(facts: CardFacts) -> str:
    ratio = facts.settings["retention_ratio"]
    name = _link(facts.base) if facts.base else f"A {facts.record.title} model"
    what = (
        f"{name} with FlashVID ([arXiv 2602.08024]({PAPER_URL})), which compresses the tokens of videos while the "
        f"model reads them: by default a layer of the language model sees {_percent(ratio)} of them on average. "
        "The weights are unchanged, and nothing was trained."
    )
    if facts.weights == "included":
        where = "The weights are in this repository."
    else:
        where = (
            f"This repository holds configuration and code. Weights, tokenizer and processor are read from "
            f"{_link(facts.base)} when the model loads"
        )
        where += f", at commit `{facts.base_revision}`." if facts.base_revision else "."
    return f"# {_name(facts.repository)}\n\n{what}\n\n{where}"


def _tokens(facts: CardFacts) -> str:
    settings = facts.settings
    ratio, expansion, layer = (settings[name] for name in ("retention_ratio", "expansion", "pruning_layer"))
    schedule = (
        f"{_percent(ratio * expansion)} of the video tokens enter the language model. Of its {facts.num_layers} "
        f"layers, those from {layer} on (counted from 0) see {_percent(settings['llm_retention_ratio'])} of these."
    )
    if ratio * expansion >= 1:
        schedule = "With these settings nothing is compressed."
    elif layer >= facts.num_layers:
        schedule = f"{_percent(ratio * expansion)} of the video tokens enter the language model; all layers see them."
    counts = [(num_frames, count_tokens(facts, num_frames)) for num_frames in TABLE_FRAMES]
    if not any(row for _, row in counts):
        return f"{schedule} With these settings the exact numbers depend on the video."
    size = facts.record.geometry.describe(facts.geometry_config, TABLE_PIXELS, TABLE_PIXELS)
    head = ("frames", "video tokens", "enter", f"remain from layer {layer} on")
    rows = [(str(num_frames), *(f"{count:,}" for count in row)) for num_frames, row in counts if row]
    return f"{schedule} {size}\n\n{_table(head, rows)}"


def _speed(facts: CardFacts) -> str:
    published = PUBLISHED.get(facts.base or "")
    own = facts.measured or "This project has no measurement on a GPU yet."
    if published and published.speed:
        speed = published.speed
        head = ("authors' measurement", "without FlashVID", "10 % of the tokens")
        rows = [("computation of the prefill", f"{speed.tflops[1]} TFLOPs", f"{speed.tflops[0]} TFLOPs")]
        for name, (with_it, without) in (("prefill", speed.prefill), ("time to first token", speed.first_token)):
            rows.append((name, f"{without:,} ms", f"{with_it} ms ({without / with_it:.1f} x faster)"))
        source = (
            f"Published by the authors ([paper]({PAPER_URL}), {speed.table}), on one A100 with 64 frames of VideoMME."
        )
        return f"{source} {own}\n\n{_table(head, rows)}"
    speed = PUBLISHED["llava-hf/llava-onevision-qwen2-7b-ov-hf"].speed
    return (
        f"Speed: the authors published none for this model. For LLaVA-OneVision-7B they report a prefill that is "
        f"{speed.prefill[1] / speed.prefill[0]:.1f} times as fast, and a first token after "
        f"{speed.first_token[0]:,.0f} ms instead of {speed.first_token[1]:,.0f} ms, on one A100 with 64 frames and 10 "
        f"% of the tokens ([paper]({PAPER_URL}), {speed.table}). {own}"
    )


def _install(facts: CardFacts) -> str:
    return f"""\
{INSTALLATION}
```python
from transformers import pipeline

pipe = pipeline(
    "video-text-to-text",
    model="{facts.repository}",
    trust_remote_code=True,  # the code of this repository
    dtype="auto",
    device_map="auto",
)
(answer,) = pipe("video.mp4", text="What happens in this video?", num_frames=32, max_new_tokens=64)
print(answer["generated_text"])
print(answer["video_tokens"])  # total, entered, remained
```"""


def _settings(facts: CardFacts) -> str:
    rows = []
    for name, setting in SETTINGS.items():
        if name in facts.settings:
            value = json.dumps(facts.settings[name]).strip('"')
            meaning = setting.meaning.format(layers=facts.num_layers)
            rows.append((f"`{name}`", f"`{value}`", setting.allowed, meaning))
    per_call = "any of them" if set(SETTINGS) - set(facts.settings) else "any of them that does not begin with `mm_`"
    return f"""\
Fields of `config.json`. `from_pretrained(..., retention_ratio=0.2)` sets them for a model, and a call of the \
pipeline, of `generate` or of `forward` sets {per_call} for itself.

{_table(("field", "here", "range", "effect"), rows)}

```python
from transformers import pipeline

pipe = pipeline(
    "video-text-to-text",
    model="{facts.repository}",
    trust_remote_code=True,
)
for ratio in (0.1, 0.25, 1.0):
    (answer,) = pipe("video.mp4", text="What happens?", retention_ratio=ratio, num_frames=16, max_new_tokens=32)
    print(ratio, answer["video_tokens"], answer["generated_text"])
```"""


def _without_remote_code(facts: CardFacts) -> str:
    return f"""\
With the package (`pip install flashvid-hf`) no code of this repository runs:

```python
import flashvid_hf  # registers the models and the pipeline
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

model = AutoModelForImageTextToText.from_pretrained(
    "{facts.repository}",
    dtype="auto",
    device_map="auto",
)
processor = AutoProcessor.from_pretrained("{facts.repository}")
pipe = pipeline("video-text-to-text", model=model, processor=processor)
print(pipe("video.mp4", text="What happens?", num_frames=32, max_new_tokens=64))
```"""


def _pinning(facts: CardFacts) -> str:
    base = " `base_model_revision` in `config.json` pins the base's weights." if facts.weights == "base" else ""
    return f"""\
Remote code runs on your machine: read it, then name the commit that you read.{base}

```python
from transformers import pipeline

pipe = pipeline(
    "video-text-to-text",
    model="{facts.repository}",
    revision="main",  # the commit's hash instead of "main" pins code and settings
    trust_remote_code=True,
)
```"""


def _accuracy(facts: CardFacts) -> str:
    published = PUBLISHED.get(facts.base or "")
    own = "This project has measured no accuracy." if facts.measured is None else ""
    if published is None:
        return f"There are no figures of the authors for this model and size. {own}".rstrip()
    return f"{_accuracy_source(published)} {own}".rstrip() + f"\n\n{_accuracy_table(published)}"


def _accuracy_source(published: Published) -> str:
    return (
        f"Published by FlashVID's authors for {published.model} ([paper]({PAPER_URL}), {published.tables}), measured "
        f'by them with LMMs-Eval, {published.frames}. They ran their released code, which `behavior="released"` '
        "follows; the default here is `paper`."
    )


def _accuracy_table(published: Published) -> str:
    head = ("tokens", "VideoMME", "EgoSchema subset / total", "LongVideoBench", "MVBench", "average", "relative")
    rows = []
    for row in published.accuracies:
        subset, total = row.ego_schema
        tokens = "all (without FlashVID)" if row.percent == 100 else f"{row.percent} %"
        scores = (row.video_mme, f"{subset} / {total}", row.long_video_bench, row.mv_bench, row.average)
        rows.append((tokens, *map(str, scores), f"{row.relative} %"))
    return _table(head, rows)


def _limits(facts: CardFacts) -> str:
    tested = (
        "- The code is tested against the upstream model on small checkpoints with random weights, on CPUs, with eager "
        "and sdpa attention."
    )
    if facts.measured is None:
        tested += " It has not been run on these weights, on a GPU or with FlashAttention."
    files = "- The code of this repository reads videos from files; URLs and bytes need the package."
    if facts.weights == "base":
        files += " Programs that look for weights or a tokenizer here, `AutoTokenizer` among them, find none."
    return f"""\
- Only videos are compressed. Images and text are read as by the base model, and the vision tower still encodes every \
frame that was sampled.
- What was dropped is gone for later turns too: a question about a small or short detail may need a higher \
`retention_ratio`.
{files}
{tested}
- Refused with an error: static and quantized caches for a prompt with videos, chunked prefill, sliding windows."""


def _license(facts: CardFacts) -> str:
    weights = f"The weights are those of {_link(facts.base) if facts.base else 'the base model'}"
    code = "The code is MIT-licensed."
    if facts.license is None:
        return f"{weights}, and its licence applies to them. {code}"
    stated = _license_fields(facts)
    name, link = stated["license_name"] or stated["license"], stated["license_link"]
    if not name:
        return f"{weights}, whose card states no licence. {code}"
    return f"{weights}, under {f'[{name}]({link})' if link else name}. {code}"


def _license_fields(facts: CardFacts) -> dict[str, Any]:
    """The base's licence fields, with a link that also works outside of the base's repository."""
    stated = {name: (facts.license or {}).get(name) for name in ("license", "license_name", "license_link")}
    link = stated["license_link"]
    if link and facts.base and not link.startswith(("http://", "https://")):
        stated["license_link"] = f"https://huggingface.co/{facts.base}/blob/main/{link}"
    return stated


def _name(repository: str) -> str:
    return repository.rsplit("/", 1)[-1]


def _link(base: str | None) -> str:
    return f"[{_name(base or '')}](https://huggingface.co/{base})"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
