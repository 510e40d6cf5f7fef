"""The reference numbers: every recorded case, in every behavior with which it can be compared.

A case that cannot be compared still runs, to test what must hold for all numbers. The table at the end of the run
counts it with the reason (`goldens.exclusion`).
"""

import hashlib
import itertools
import math
from collections import defaultdict
from dataclasses import fields
from functools import cache
from pathlib import Path

import goldens
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, Qwen2Config

from flashvid_hf import LayerPruning, find_family
from flashvid_hf.compression.compress_video import (
    CompressedVideo,
    CompressionConfig,
    compress_video,
    cosine_distances,
    event_relevance,
    exact_num_tokens,
    segment_means,
)
from flashvid_hf.compression.density_peaks import cluster_tokens
from flashvid_hf.compression.released_deviations import released_cluster_tokens, released_segment_lengths
from flashvid_hf.compression.segmentation import frame_similarity, segment_video
from flashvid_hf.compression.similarity import inverse_norms
from flashvid_hf.compression.token_merging import find_roots, link_tokens, merge_tokens
from flashvid_hf.compression.token_selection import select_tokens
from flashvid_hf.compression.weighted_rows import weighted_sums
from flashvid_hf.models.columns import gather_columns
from flashvid_hf.models.layer_pruning import PRUNING, TokenPruning
from flashvid_hf.models.outputs import FlashVIDVideoOutput
from flashvid_hf.models.upstream import CACHE

SETTINGS = [field.name for field in fields(CompressionConfig)]

# The ids of the cases, by kind (and behavior), then by the reason of an exclusion or None.
TALLY: defaultdict[str, defaultdict[str | None, list[str]]] = defaultdict(lambda: defaultdict(list))


def compare(kind, cases, behaviors=goldens.BEHAVIORS, exclusion=goldens.exclusion):
    """Decorator: run a test for every case in every behavior; the first argument names it in the table."""
    params = []
    for case, behavior in itertools.product(cases, behaviors):
        name = f"{kind if isinstance(kind, str) else kind(case)} ({behavior})"
        reason = exclusion(case, behavior)
        TALLY[name][reason].append(case["id"])
        params.append(pytest.param(case, behavior, (name, reason), id=f"{case['id']}-{behavior}"))
    return pytest.mark.parametrize(("case", "behavior", "outcome"), params)


@pytest.fixture
def reason(outcome, record_property):
    """The reason why the case is not compared, or `None`. It is recorded for the table at the end of the run."""
    record_property(goldens.PROPERTY, outcome)
    return outcome[1]


def in_tolerance(difference: float, expected: torch.Tensor) -> bool:
    return difference <= goldens.TOKEN_TOLERANCE * expected.abs().max().item()


# The whole compression


@compare("compression", goldens.compression_cases())
def test_compression(case, behavior, reason):
    video = check_compression(case, behavior)
    if reason is not None:
        return
    reference = goldens.tensors(case)
    torch.testing.assert_close(video.indices, reference["kept_indices"].long(), rtol=0, atol=0)
    assert video.segment_lengths.tolist() == case["expect"]["segment_lengths"]
    assert video.segment_lengths.tolist() == reference["segment_lengths"].tolist()
    tolerance = goldens.TOKEN_TOLERANCE * case["flags"]["max_abs_token"]
    if "tokens" in reference:
        assert goldens.largest_difference(video.indices, video.tokens, reference["tokens"]) <= tolerance
    elif "tokens_proj" in reference:
        projected = video.tokens @ goldens.load(case["file"])["input.proj"]
        assert goldens.largest_difference(video.indices, projected, reference["tokens_proj"]) <= tolerance
    else:
        features, _ = goldens.video(case)
        assert torch.equal(video.tokens, features.flatten(0, 1)[video.indices])


@compare("compression where the released code raises", goldens.error_cases())
def test_compression_where_the_released_code_raises(case, behavior, reason):
    assert reason is not None
    check_compression(case, behavior)


def check_compression(case, behavior) -> CompressedVideo:
    """Compress the video of a case, and check what must hold for every reference."""
    features, attention = goldens.video(case)
    originals = features.clone(), attention.clone()
    config = CompressionConfig(**case["params"], behavior=behavior)
    video = compress_video(features, attention, config)
    assert torch.equal(features, originals[0]) and torch.equal(attention, originals[1])
    assert torch.isfinite(video.tokens).all()
    assert len(video.tokens) == len(video.indices)
    if behavior == "paper":
        assert len(video.indices) == exact_num_tokens(*attention.shape, config)
        assert (video.indices.diff() > 0).all()
        assert video.segment_lengths.sum() == len(features) and (video.segment_lengths > 0).all()
    if math.ceil(features.shape[1] * config.retention_ratio * config.expansion) >= features.shape[1]:
        assert torch.equal(video.tokens, features.flatten(0, 1))
        assert video.indices.tolist() == list(range(attention.numel()))
    return video


# Its parts


@compare("segment", goldens.stage_cases("segment"))
def test_segment(case, behavior, reason):
    reference, params = goldens.tensors(case), case["params"]
    starts = segment_video(reference["frame_features"], **params)
    expected = reference["segment_lengths"].tolist()
    assert expected == case["expect"]["segment_lengths"]
    if behavior == "released":
        assert released_segment_lengths(frame_similarity(reference["frame_features"]), **params).tolist() == expected
    # The released code may list empty segments; both group the frames in the same way.
    lengths = starts.nonzero()[:, 0].diff(append=torch.tensor([len(starts)]))
    assert lengths.tolist() == [length for length in expected if length]
    if behavior == "paper" and reason is None:
        assert lengths.tolist() == expected


@compare("token_selection", goldens.stage_cases("token_selection"))
def test_token_selection(case, behavior, reason):
    reference, method, count = goldens.tensors(case), case["params"]["method"], case["params"]["num_retained_tokens"]
    features = reference["features"]  # (T, N, D), one segment
    together = torch.ones(len(features), len(features), dtype=torch.bool)
    relevance = event_relevance(features, segment_means(features.mean(1), together))
    chosen = select_tokens(
        cosine_distances(features)[0],
        reference["cls_attention"],
        count,
        method=method,
        event_relevance=relevance if method == "attn_div_v2" else None,
        released=behavior == "released",
    )
    assert chosen.shape == (len(features), count)
    if behavior == "paper":
        assert (chosen.diff() > 0).all()
    if reason is None:
        torch.testing.assert_close(chosen, reference["indices"].long(), rtol=0, atol=0)


@compare("spatiotemporal_compression", goldens.stage_cases("spatiotemporal_compression"))
def test_spatiotemporal_compression(case, behavior, reason):
    """The trees over time of one segment, before anything is merged within the frames."""
    reference, params = goldens.tensors(case), case["params"]
    features, selected = reference["video_features"], reference["token_mask"] == 0
    num_frames, num_tokens, width = features.shape
    per_frame = params["num_attn_div_tokens"] + params["num_sttm_tokens"]
    one_segment = torch.zeros(num_frames, dtype=torch.long)
    inverse_norm = inverse_norms(features.square().sum(-1))
    flat_index = torch.arange(num_frames * num_tokens)
    parent = link_tokens(
        features,
        inverse_norm,
        selected,
        one_segment,
        flat_index,
        max_links=torch.full_like(one_segment, (num_tokens - per_frame) * num_frames),
        temporal_threshold=params["temporal_threshold"],
        strict_limit=behavior == "released",
    )
    roots = find_roots(parent, num_frames)
    members = torch.zeros_like(roots).index_add_(0, roots, torch.ones_like(roots))[roots]
    is_root = (parent == flat_index) & ~selected.view(-1)
    assert is_root.sum() + selected.sum() >= per_frame * num_frames  # at least the budget
    if reason is not None:
        return
    weight = members.float().reciprocal()
    if behavior == "released":  # with as many clusters as tokens, every tree is one
        weight = merge_tokens(
            features,
            parent,
            selected,
            one_segment,
            flat_index,
            together=torch.ones(num_frames, num_frames, dtype=torch.bool),
            num_merged=num_tokens,
            released=True,
        ).weight
    means = weighted_sums(features.reshape(-1, width), flat_index, roots, weight, flat_index)
    assert is_root.view(num_frames, num_tokens).sum(1).tolist() == reference["counts_per_frame"].tolist()
    assert (flat_index[is_root] % num_tokens).tolist() == reference["indices"].tolist()
    assert in_tolerance((means[is_root] - reference["tokens"]).abs().max().item(), reference["tokens"])


@compare("dpc_knn", goldens.stage_cases("dpc_knn"))
def test_dpc_knn(case, behavior, reason):
    reference, num_valid = goldens.tensors(case), goldens.num_valid_tokens(case)
    features = reference["features"]
    candidates = torch.arange(features.shape[1]).expand(features.shape[:2]) < num_valid
    count = min(case["params"]["num_clusters"], num_valid)
    cluster = cluster_tokens if behavior == "paper" else released_cluster_tokens
    centers, joined = cluster(
        features, candidates, *(torch.full((len(features),), number) for number in (count, case["params"]["k"]))
    )
    assert centers.sum(1).tolist() == [count] * len(features)
    assert centers.gather(1, joined)[candidates].all() and not centers[~candidates].any()
    if reason is None:
        expected = reference["centers"].long()
        assert torch.equal(centers.nonzero()[:, 1].view_as(expected), expected.sort(-1).values)
        joined_expected = expected.gather(1, reference["cluster_indices"].long())
        assert torch.equal(joined[candidates], joined_expected[candidates])


@compare("fastv_prune", goldens.stage_cases("fastv_prune"), ["released"])  # the behaviors share this code
def test_fastv_prune(case, behavior, reason):
    """The columns that the layers from the pruning layer on see, given the attention of the layer below."""
    reference, params = goldens.tensors(case), case["params"]
    hidden_states, last_query = reference["hidden_states"], reference["attentions"][:, :, -1]
    column = torch.arange(hidden_states.shape[1])[None]
    if params["variant"] == "mask_1d":
        prunable = reference["visual_pos_masks"].bool()
        assert prunable.sum() == params["visual_token_length"]
    else:
        start = params["visual_token_start_index"]
        prunable = (column >= start) & (column < start + params["visual_token_length"])
    config = Qwen2Config(num_hidden_layers=2, num_attention_heads=2, hidden_size=hidden_states.shape[-1])
    pruning = TokenPruning(
        config,
        1,  # the pruning layer
        None,  # no cache
        None,
        None,
        rule=LayerPruning(1, params["llm_retention_ratio"]),
        prunable=prunable,
        query=column[:, -1],
        past_lower_mask=None,
        padding_side="left",
    )
    pruning.scores = last_query.mean(1)
    # One rotary table for all axes, as in the layers of the language models.
    tables = tuple(t[0] if t.ndim == 4 else t for t in (reference["cos"], reference["sin"]))
    kwargs = {"position_embeddings": tables, "position_ids": column}
    pruned = pruning.start_layer(1, hidden_states, kwargs)

    keep = reference["keep_indices"].long()
    assert reason is None
    assert torch.equal(pruning.columns, keep[None]) and pruning.new_mask is None
    assert len(keep) == case["expect"]["n_keep"]
    assert int(prunable[0, keep].sum()) == case["expect"]["n_visual_kept"]
    assert torch.equal(pruned, hidden_states[:, keep])
    for kept, table in zip(kwargs["position_embeddings"], tables, strict=True):
        assert torch.equal(kept, table[:, keep])
    positions = column + 7
    if params["variant"] == "span_mrope":
        positions = positions[None] + torch.arange(3)[:, None, None] - 7
    assert torch.equal(
        gather_columns(positions, pruning.columns, positions.ndim - 1), reference["position_ids_out"].long()
    )


# The compression on what whole models computed


@compare(lambda case: f"vision {case['family']}", goldens.vision_cases())
def test_compression_of_recorded_features(case, behavior, reason):
    vision, reference = goldens.load(case["vision_file"]), goldens.load(case["file"])
    features, attention = vision["vision.video_features"], vision["vision.cls_attention"]
    settings = {name: value for name, value in case["flashvid"].items() if name in SETTINGS}
    video = compress_video(features, attention, CompressionConfig(**settings, behavior=behavior))
    assert torch.isfinite(video.tokens).all()
    if reason is not None:
        return
    assert torch.equal(video.indices, reference["vision.kept_indices"].long())
    if math.ceil(features.shape[1] * settings["retention_ratio"] * settings["expansion"]) < features.shape[1]:
        assert video.segment_lengths.tolist() == reference["vision.segment_lengths"].tolist()
    if "vision.tokens" in reference:
        expected = reference["vision.tokens"]
        assert in_tolerance(goldens.largest_difference(video.indices, video.tokens, expected), expected)
    else:
        expected = reference["vision.token_norms"]
        norms = video.tokens.norm(dim=-1)
        assert in_tolerance(goldens.largest_difference(video.indices, norms[:, None], expected[:, None]), expected)


# Whole models


@cache
def load_model(folder: Path, settings: tuple):
    model, info = find_family(str(folder)).generative_model.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **dict(settings)
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


class Recording:
    """The inputs of a language model in every call, and the result of the first call of the base model."""

    def __init__(self, model):
        self.calls, self.outputs, self.model = [], [], model

    def __enter__(self):
        def enter(module, args, kwargs):
            self.calls.append(kwargs)

        def leave(module, args, output):
            self.outputs.append(output)

        language_model = self.model.model.language_model
        self.hooks = [
            language_model.register_forward_pre_hook(enter, with_kwargs=True),
            self.model.model.register_forward_hook(leave),
        ]
        return self

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()


class Force(LogitsProcessor):
    """Make greedy decoding follow given tokens, even if another token is almost as likely."""

    def __init__(self, tokens: list[int], prompt_length: int):
        self.tokens, self.prompt_length = tokens, prompt_length

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.tokens[input_ids.shape[1] - self.prompt_length]] = 0
        return forced


class Case:
    """A case of a whole model: the model, its inputs and the reference."""

    def __init__(self, case: dict, behavior: str):
        self.case, self.result = case, case["result"]
        self.reference = goldens.load(case["file"])
        settings = case["flashvid"] or {"retention_ratio": 1.0}
        self.model = load_model(self.folder(), tuple({**settings, "behavior": behavior}.items()))
        self.inputs = self.read_inputs(goldens.load(case["input_file"]))
        self.prompt_length = self.inputs["input_ids"].shape[1]
        self.is_video = self.inputs["input_ids"][0] == self.model.config.video_token_id
        self.compresses = self.model.config.compresses
        self.prunes = "prune.keep_indices" in self.reference
        self.num_newlines = 0
        assert self.compresses or case["kind"] == "vanilla" or case["flashvid"]["alpha"] == 1

    def folder(self) -> Path:
        return goldens.ROOT / self.case["model_dir"]

    def arguments(self) -> dict:
        encoded = {} if "pixel_values_videos" in self.inputs else {"mm_encoder_outputs": {"video": self.encoded}}
        return {**self.inputs, **encoded}

    def check_kept_indices(self, report) -> None:
        video = report.videos[0]
        assert torch.equal(video.indices, self.reference["vision.kept_indices"].long())
        assert report.segment_lengths == (tuple(self.result["segment_lengths"]),)
        assert report.tokens == (int(self.is_video.sum()),)
        assert report.entered == (self.result["n_visual"] + self.num_newlines,)
        if not self.result["has_duplicates"] and "vision.tokens" in self.reference:
            assert in_tolerance((video.tokens - self.reference["vision.tokens"]).abs().max().item(), video.tokens)

    def check_logits(self, logits) -> None:
        torch.testing.assert_close(
            logits, self.reference["logits"][: len(logits)], rtol=0, atol=goldens.LOGITS_TOLERANCE
        )


class QwenCase(Case):
    """Positions have three axes, and kept tokens keep theirs. Both rows of a repeated index hold the same vector."""

    def read_inputs(self, stored: dict) -> dict:
        names = ("input_ids", "attention_mask", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
        inputs = {name: stored[name] for name in names if name in stored}
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.model.config.video_token_id) * 2
        self.vanilla = next(
            goldens.load(other["file"])
            for other in goldens.e2e_cases(self.case["family"])
            if other["kind"] == "vanilla" and other["input"] == self.case["input"]
        )
        if self.case.get("rope_positions_differ_in_transformers_5_23"):
            # `generate` also needs the row of the text positions; the layers do not read it.
            row = torch.arange(inputs["input_ids"].shape[1])[None, None]
            inputs["position_ids"] = torch.cat([row, self.vanilla["position_ids"].long()])
        return inputs

    def enter_recorded_tokens(self) -> None:
        """From here on, the recorded inputs of the reference's language model take the place of the pixels.

        This is for repeated indices, whose rows have no defined order, not even in the reference.
        """
        indices = self.reference["vision.kept_indices"].long()
        tokens = self.reference["lm.inputs_embeds"][0, self.is_video[self.entered_columns()]]
        shape = goldens.load(self.case["vision_file"])["vision.cls_attention"].shape
        grid = torch.arange(shape.numel()).view(shape)
        starts = torch.zeros(shape[0], dtype=torch.bool)
        starts[self.reference["vision.segment_lengths"].cumsum(0)[:-1]] = True
        starts[0] = True
        video = CompressedVideo(tokens, indices, starts, torch.zeros(shape, dtype=torch.bool), grid, grid)
        # Rows of a repeated index have equal deepstack features, so their order does not matter.
        ours = self.model.get_video_features(self.inputs["pixel_values_videos"], self.inputs["video_grid_thw"])
        self.encoded = FlashVIDVideoOutput(
            pooler_output=(tokens,), videos=(video,), deepstack_features=ours.deepstack_features
        )
        del self.inputs["pixel_values_videos"]

    def entered_columns(self) -> torch.Tensor:
        return self.reference["lm.kept_positions"].long()

    def check_repeats(self, recording: Recording) -> None:
        """All rows of a repeated index hold the same vector, which is not defined. Other rows equal the reference."""
        entered = self.entered_columns()
        repeats = entered[1:][entered.diff() == 0].unique()
        given, expected = recording.calls[0]["inputs_embeds"][0], self.reference["lm.inputs_embeds"][0]
        single = ~torch.isin(entered, repeats)
        assert len(repeats) == self.result["n_visual"] - self.result["n_visual_unique"]
        assert in_tolerance((given - expected)[single].abs().max().item(), expected)
        for rows in (given, expected):
            assert all(torch.equal(rows[entered == index][0], rows[entered == index][1]) for index in repeats)

    def check_positions(self, position_ids: torch.Tensor) -> None:
        # The last three rows are the axes; a row before them only separates packed sequences.
        expected = self.reference["lm.position_ids"] if self.compresses else self.vanilla["position_ids"]
        assert torch.equal(position_ids[-3:], expected[-3:].long())

    def check_decoding(self, position_ids: torch.Tensor, cache) -> None:
        seen = cache.get_seq_length()  # of the prompt before the compression
        assert seen == self.result["decode_cache_position_first"] + len(self.reference["generated_ids"][0]) - 1
        assert torch.equal(position_ids[-3:], self.reference["decode.position_ids_first"][-3:].long())


class LlavaCase(Case):
    """Original weights, newlines and consecutive positions. Both vectors of a repeated index enter."""

    def __init__(self, case: dict, behavior: str):
        super().__init__(case, behavior)
        num_frames = len(self.inputs["pixel_values_videos"][0])
        self.newline = case["config_overrides"]["mm_newline_position"]
        self.num_newlines = {"one_token": 1, "frame": num_frames}[self.newline]

    def folder(self) -> Path:
        overrides = self.case["config_overrides"]
        return goldens.llava_folder(overrides["mm_spatial_pool_mode"], overrides["mm_newline_position"])

    def read_inputs(self, stored: dict) -> dict:
        frames = stored["frames_small"].repeat_interleave(8, 1).repeat_interleave(8, 2)
        pixels = ((frames.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
        checksum = [pixels.double().sum().item(), pixels.double().abs().sum().item()]
        assert checksum == pytest.approx(self.result["pixel_checksum"][:2], rel=1e-6)
        overrides = self.case["config_overrides"]
        side = 14 if overrides["mm_spatial_pool_mode"] == "bilinear" else 13
        newlines = {"one_token": 1, "frame": len(pixels)}[overrides["mm_newline_position"]]
        ids = stored["input_ids"][0].tolist()
        start = ids.index(-200)
        placeholders = [self.model.config.video_token_id] * (len(pixels) * side**2 + newlines)
        ids = torch.tensor([ids[:start] + placeholders + ids[start + 1 :]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels[None]}

    def enter_recorded_tokens(self) -> None:
        """From here on, the rows of repeated indices come in the order that the reference's unstable sort gave them."""
        ours = self.model.get_video_features(self.inputs.pop("pixel_values_videos"))
        (video,) = ours.videos
        if "vision.tokens" in self.reference:
            order = goldens.fitting_order(video.indices, video.tokens, self.reference["vision.tokens"])
        else:
            norms, expected = video.tokens.norm(dim=-1)[:, None], self.reference["vision.token_norms"][:, None]
            order = goldens.fitting_order(video.indices, norms, expected)
        rows = ours.pooler_output[0].clone()
        is_token = self.entered_is_token()
        assert torch.equal(rows[is_token], video.tokens)
        rows[is_token] = video.tokens[order]
        self.encoded = FlashVIDVideoOutput(pooler_output=(rows,), videos=(video,))

    def slots(self) -> list[tuple[int, bool]]:
        """The placeholder of every row of the video that enters, and whether it is a token or a newline."""
        indices = self.reference["vision.kept_indices"].tolist()
        size = (int(self.is_video.sum()) - self.num_newlines) // self.num_newlines
        tokens = [(index + index // size, True) for index in indices]
        newlines = [(number * (size + 1) + size, False) for number in range(self.num_newlines)]
        return sorted(tokens + newlines, key=lambda slot: slot[0])

    def entered_is_token(self) -> torch.Tensor:
        return torch.tensor([is_token for _, is_token in self.slots()])

    def entered_columns(self) -> torch.Tensor:
        start = int(self.is_video.nonzero()[0])
        before, after = torch.arange(start), torch.arange(start + int(self.is_video.sum()), self.prompt_length)
        return torch.cat([before, torch.tensor([place + start for place, _ in self.slots()]), after])

    def check_repeats(self, recording: Recording) -> None:
        """The rows of a repeated index hold the recorded vectors in some order."""
        video = self.model.get_video_features(self.inputs["pixel_values_videos"]).videos[0]
        assert len(video.indices.unique()) == self.result["n_visual_unique"]
        if "vision.tokens" in self.reference:
            expected = self.reference["vision.tokens"]
            assert in_tolerance(goldens.largest_difference(video.indices, video.tokens, expected), expected)

    def check_positions(self, position_ids: torch.Tensor) -> None:
        length = self.result["seq_len_lm"] if self.compresses else self.prompt_length
        if self.compresses or position_ids is not None:  # upstream's `forward` leaves them to the language model
            assert torch.equal(position_ids, torch.arange(length)[None])

    def check_decoding(self, position_ids: torch.Tensor, cache) -> None:
        assert position_ids.tolist() == [[self.result["seq_len_lm"]]]
        assert cache.get_seq_length() == self.prompt_length + len(self.reference["generated_ids"][0]) - 1


def open_case(case: dict, behavior: str) -> Case:
    return (LlavaCase if case["family"] == "llava" else QwenCase)(case, behavior)


@compare(
    lambda case: f"vision tower {case['family']}",
    goldens.vision_cases(),
    behaviors=("released",),
    exclusion=lambda case, behavior: None,
)
@torch.no_grad()
def test_vision_tower(case, behavior, reason):
    """The input of the compression: features and received attention of every token, which were recorded too."""
    run = open_case(case, behavior)
    recorded = goldens.load(case["vision_file"])
    given = []
    run.model.model.compress_videos = lambda *args: (
        given.append(args) or type(run.model.model).compress_videos(run.model.model, *args)
    )
    try:
        run.model.config.retention_ratio = 0.1  # in some cases nothing would be compressed otherwise
        pixels = {name: run.inputs[name] for name in ("pixel_values_videos", "video_grid_thw") if name in run.inputs}
        run.model.get_video_features(**pixels)
    finally:
        del run.model.model.compress_videos
        run.model.config.retention_ratio = case["flashvid"]["retention_ratio"]
    (((features,), ((attention,),), *_),) = given
    for ours, name in ((features, "vision.video_features"), (attention, "vision.cls_attention")):
        assert in_tolerance((ours - recorded[name]).abs().max().item(), recorded[name])


@compare(
    lambda case: f"e2e {case['family']}, one forward",
    goldens.e2e_cases(),
    exclusion=goldens.whole_model_exclusion,
)
@torch.no_grad()
def test_forward(case, behavior, reason):
    run = open_case(case, behavior)
    with Recording(run.model) as recording:
        output = run.model(**run.arguments())
    assert torch.isfinite(output.logits).all()
    if reason is not None:
        return
    if not run.compresses:
        assert not output.report.compressed and output.token_index is None
        run.check_positions(recording.calls[0]["position_ids"])
        run.check_logits(output.logits[0, -1:])
        return
    run.check_kept_indices(output.report)
    if run.result["has_duplicates"]:
        run.check_repeats(recording)
        run.enter_recorded_tokens()
        with Recording(run.model) as recording:
            output = run.model(**run.arguments())
    check_entered(run, recording)
    check_pruned(run, recording, output)
    run.check_logits(output.logits[0, -1:])


def check_entered(run: Case, recording: Recording) -> None:
    """Compare the inputs of the language model."""
    given = recording.calls[0]
    assert given["inputs_embeds"].shape[1] == run.result["seq_len_lm"]
    if "lm.inputs_embeds" in run.reference:
        expected = run.reference["lm.inputs_embeds"]
        assert in_tolerance((given["inputs_embeds"] - expected).abs().max().item(), expected)
    run.check_positions(given["position_ids"])


def check_pruned(run: Case, recording: Recording, output) -> None:
    """Compare the columns of the prompt that were left in the end, and why."""
    entered = run.entered_columns()
    if not run.prunes:
        assert torch.equal(output.token_index, entered[None])
        assert output.report.remained == output.report.entered
        return
    pruning = recording.calls[0][PRUNING]
    keep = run.reference["prune.keep_indices"].long()
    attention = run.reference["prune.last_query_attention"]
    assert in_tolerance((pruning.scores - attention).abs().max().item(), attention)
    assert torch.equal(pruning.columns, keep[None])
    assert torch.equal(output.token_index, entered[keep][None])
    if "prune.kept_positions" in run.reference:
        assert torch.equal(output.token_index, run.reference["prune.kept_positions"].long()[None])
    prunable = run.result["prune_visual_length"]
    remained = math.ceil(run.case["flashvid"]["llm_retention_ratio"] * prunable)
    assert output.report.remained == (remained + output.report.entered[0] - prunable,)
    assert len(keep) == run.result["seq_len_lm"] - prunable + remained


@compare(lambda case: f"e2e {case['family']}, generate", goldens.e2e_cases(), exclusion=goldens.whole_model_exclusion)
def test_generate(case, behavior, reason):
    run = open_case(case, behavior)
    if reason is None and run.result["has_duplicates"]:
        run.enter_recorded_tokens()
    expected = run.reference["generated_ids"][0].tolist()
    is_certain = run.result["min_top2_margin"] > goldens.MIN_MARGIN
    with Recording(run.model) as recording:
        output = run.model.generate(
            **run.arguments(),
            max_new_tokens=len(expected),
            min_new_tokens=len(expected),
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            logits_processor=LogitsProcessorList([] if is_certain else [Force(expected, run.prompt_length)]),
        )
    logits = torch.cat(output.logits)
    assert logits.shape == run.reference["logits"].shape and torch.isfinite(logits).all()
    if reason is not None:
        return
    assert output.sequences[0, run.prompt_length :].tolist() == expected
    run.check_logits(logits)
    if is_certain:
        assert logits.argmax(-1).tolist() == expected
    lengths = [layer.keys.shape[-2] for layer in output[CACHE].layers]
    if case["kind"] == "vanilla":
        assert lengths == [run.prompt_length + len(expected) - 1] * len(lengths)
    else:
        assert lengths == run.result["cache_lengths"]
        run.check_decoding(recording.calls[1]["position_ids"], output[CACHE])
    if run.compresses:
        assert len(output[CACHE].reports) == 1
        run.check_kept_indices(output[CACHE].reports[0])


# Nothing disappears


# Numbers of compared and excluded cases of each kind, for the known sets of reference numbers.
COUNTS = {
    "public": {
        "compression (released)": (287, 172),
        "compression (paper)": (85, 374),
        "compression where the released code raises (released)": (0, 29),
        "compression where the released code raises (paper)": (0, 29),
        "segment (released)": (108, 0),
        "segment (paper)": (101, 7),
        "token_selection (released)": (107, 1),
        "token_selection (paper)": (107, 1),
        "spatiotemporal_compression (released)": (60, 0),
        "spatiotemporal_compression (paper)": (15, 45),
        "dpc_knn (released)": (49, 15),
        "dpc_knn (paper)": (49, 15),
        "fastv_prune (released)": (48, 0),
        "vision qwen2_5_vl (released)": (10, 2),
        "vision qwen2_5_vl (paper)": (3, 9),
        "vision qwen3_vl (released)": (11, 1),
        "vision qwen3_vl (paper)": (3, 9),
        "e2e qwen3_vl, one forward (released)": (13, 2),
        "e2e qwen3_vl, one forward (paper)": (3, 12),
        "e2e qwen3_vl, generate (released)": (13, 2),
        "e2e qwen3_vl, generate (paper)": (3, 12),
        "vision llava (released)": (11, 0),
        "vision llava (paper)": (2, 9),
        "e2e qwen2_5_vl, one forward (released)": (13, 2),
        "e2e qwen2_5_vl, one forward (paper)": (6, 9),
        "e2e qwen2_5_vl, generate (released)": (13, 2),
        "e2e qwen2_5_vl, generate (paper)": (6, 9),
        "e2e llava, one forward (released)": (15, 0),
        "e2e llava, one forward (paper)": (5, 10),
        "e2e llava, generate (released)": (15, 0),
        "e2e llava, generate (paper)": (5, 10),
        "vision tower llava (released)": (11, 0),
        "vision tower qwen2_5_vl (released)": (12, 0),
        "vision tower qwen3_vl (released)": (12, 0),
    },
    "public, selection": {
        "compression (released)": (59, 29),
        "compression (paper)": (21, 67),
        "compression where the released code raises (released)": (0, 12),
        "compression where the released code raises (paper)": (0, 12),
        "segment (released)": (108, 0),
        "segment (paper)": (101, 7),
        "token_selection (released)": (83, 1),
        "token_selection (paper)": (83, 1),
        "spatiotemporal_compression (released)": (30, 0),
        "spatiotemporal_compression (paper)": (15, 15),
        "dpc_knn (released)": (49, 15),
        "dpc_knn (paper)": (49, 15),
        "fastv_prune (released)": (32, 0),
        "vision qwen2_5_vl (released)": (3, 1),
        "vision qwen2_5_vl (paper)": (1, 3),
        "vision qwen3_vl (released)": (2, 0),
        "vision qwen3_vl (paper)": (0, 2),
        "vision llava (released)": (4, 0),
        "vision llava (paper)": (2, 2),
        "vision tower llava (released)": (4, 0),
        "vision tower qwen2_5_vl (released)": (4, 0),
        "vision tower qwen3_vl (released)": (2, 0),
        "e2e qwen3_vl, one forward (released)": (3, 0),
        "e2e qwen3_vl, one forward (paper)": (1, 2),
        "e2e qwen3_vl, generate (released)": (3, 0),
        "e2e qwen3_vl, generate (paper)": (1, 2),
        "e2e qwen2_5_vl, one forward (released)": (4, 1),
        "e2e qwen2_5_vl, one forward (paper)": (2, 3),
        "e2e qwen2_5_vl, generate (released)": (4, 1),
        "e2e qwen2_5_vl, generate (paper)": (2, 3),
        "e2e llava, one forward (released)": (6, 0),
        "e2e llava, one forward (paper)": (3, 3),
        "e2e llava, generate (released)": (6, 0),
        "e2e llava, generate (paper)": (3, 3),
    },
}


def test_every_case_is_compared_or_excluded():
    tally = {kind: dict(by_reason) for kind, by_reason in TALLY.items()}
    cases = [*goldens.compression_cases(), *goldens.error_cases(), *goldens.manifest()["stages"], *goldens.e2e_cases()]
    met = {id for by_reason in tally.values() for ids in by_reason.values() for id in ids}
    assert {case["id"] for case in cases} == met
    numbers = {
        kind: (len(by_reason.get(None, [])), sum(len(ids) for reason, ids in by_reason.items() if reason))
        for kind, by_reason in tally.items()
    }
    expected = COUNTS.get(goldens.manifest()["set"], {})
    assert {kind: numbers.get(kind) for kind in expected} == expected
    assert len(numbers) > 10


def test_files_are_what_was_recorded():
    for name, entry in goldens.manifest()["files"].items():
        assert hashlib.sha256((goldens.ROOT / name).read_bytes()).hexdigest() == entry["sha256"], name
