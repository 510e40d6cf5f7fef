"""Checks of the model card, its snippets, and the evaluation results of the folder."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import yaml  # type: ignore[import-untyped,unused-ignore]
from huggingface_hub import parse_eval_result_entries

from .clean_probe import make_scenes
from .clean_process import workplace
from .hub_folder import FULL, RECIPE, CheckSkipped, HubFolder, Snippet, last_lines, read_yaml
from .remote_code import find_model_names, names_the_folder

_REQUIRED = {"library_name": "transformers", "pipeline_tag": "video-text-to-text"}
VIDEO_NAMES = ("video.mp4", "clip.mp4")  # videos that a snippet may open
# Size of these videos: more frames than the 32 that a card's snippets ask for, and few pixels, to be fast.
_VIDEO_FRAMES, _VIDEO_HEIGHT, _VIDEO_WIDTH, _VIDEO_FPS = 40, 120, 160, 10


def check_card_metadata(folder: HubFolder) -> Iterator[str]:
    """The metadata has the fields by which the Hub finds the model, its widget and its base model."""
    metadata = folder.card_metadata
    for name, value in _REQUIRED.items():
        if metadata.get(name) != value:
            yield f"README.md: `{name}` is {metadata.get(name)!r}, set it to {value!r}"
    tags = metadata.get("tags")
    if not isinstance(tags, list) or not tags or not all(isinstance(tag, str) for tag in tags):
        yield f"README.md: `tags` is {tags!r}, set it to a list of words"
    named, wanted = metadata.get("base_model"), folder.config.get("base_model_name_or_path")
    if named is not None and not _is_strings(named):
        yield f"README.md: `base_model` is {named!r}, set it to a Hub id"
    elif (wanted or folder.kind != FULL) and named not in (wanted, [wanted]):
        yield f"README.md: `base_model` is {named!r}, set it to {wanted!r}, as `base_model_name_or_path` in config.json"
    licence = metadata.get("license")
    if licence is None and named is not None and folder.kind != RECIPE:
        yield "README.md: `license` is missing, set it to that of the base model"
    elif licence is not None and not isinstance(licence, str):
        yield f"README.md: `license` is {licence!r}, set it to an identifier such as 'apache-2.0'"
    elif licence == "other" and not metadata.get("license_name"):
        yield "README.md: `license` is 'other', add `license_name` and `license_link`"


def check_snippets_compile(folder: HubFolder) -> Iterator[str]:
    """The card's python blocks are valid Python."""
    for snippet in _snippets(folder):
        try:
            compile(snippet.program, "README.md", "exec")
        except SyntaxError as error:
            yield f"README.md:{error.lineno}: block {snippet.number} is no Python ({error.msg}), correct it"


def check_snippets_run(folder: HubFolder) -> Iterator[str]:
    """Each python block of the card runs unchanged and on its own, in a directory that has the videos `VIDEO_NAMES`."""
    runnable = [(snippet, _parse(snippet)) for snippet in _snippets(folder)]
    with workplace(folder.weight_bytes) as place:
        for name in VIDEO_NAMES:
            write_video(place.directory / name)
        if folder.base:
            place.link_cache(folder.base)
        for name in sorted({name for _, tree in runnable if tree for name in find_model_names(tree)} - {folder.base}):
            if name.count("/") == 1 and names_the_folder(name):
                place.add_to_cache(name, folder.path)
            elif names_the_folder(name):
                place.add_folder(name, folder.path)
        for snippet, tree in runnable:
            if tree is None:
                continue  # reported by `check_snippets_compile`
            status, errors = place.run(snippet.program, name="README.md", with_package=_uses_package(tree))
            if status:
                yield (
                    f"README.md:{snippet.line}: block {snippet.number} ended with status {status}: {last_lines(errors)}"
                )
        if not any(tree for _, tree in runnable):
            raise CheckSkipped("no python block of the card is Python, see above")


def check_eval_results(folder: HubFolder) -> Iterator[str]:
    """The files `.eval_results/*.yaml` are in the form that the Hub reads."""
    files = sorted((folder.path / ".eval_results").glob("*.y*ml"))
    if not files:
        raise CheckSkipped("the folder has no `.eval_results`")
    for path in files:
        name = path.relative_to(folder.path).as_posix()
        try:
            entries = read_yaml(path.read_text(encoding="utf-8"))
            if not isinstance(entries, list) or not entries:
                raise ValueError(f"it holds a {type(entries).__name__}, write a list of results")
            parse_eval_result_entries(entries)
            for entry in entries:
                if isinstance(entry["value"], bool) or not isinstance(entry["value"], (int, float)):
                    raise ValueError(f"`value` is {entry['value']!r}, write a number")
        except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield f"{name}: cannot be read as evaluation results ({type(error).__name__}: {error}), correct it"


def write_video(path: Path) -> None:
    """Write a short MPEG-4 video of moving scenes."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=_VIDEO_FPS)
        stream.width, stream.height, stream.pix_fmt = _VIDEO_WIDTH, _VIDEO_HEIGHT, "yuv420p"
        for picture in make_scenes(_VIDEO_FRAMES, _VIDEO_HEIGHT, _VIDEO_WIDTH).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _snippets(folder: HubFolder) -> tuple[Snippet, ...]:
    if not folder.snippets:
        raise CheckSkipped("the card has no python block" if folder.card else "the folder has no README.md")
    return folder.snippets


def _parse(snippet: Snippet) -> ast.Module | None:
    try:
        return ast.parse(snippet.program)
    except SyntaxError:
        return None


def _uses_package(tree: ast.Module) -> bool:
    modules = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return any(module.partition(".")[0] == "flashvid_hf" for module in modules)


def _is_strings(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
