"""Models on disk, on two ranks, with recomputation, compilation, low precision or adapters.

Each gives the same as the plain model.
"""

import os
from datetime import timedelta
from pathlib import Path

import peft
import pytest
import torch
from checkpoints import device_map, once
from families import FAMILIES, IMAGE, VIDEO
from torch import distributed, multiprocessing
from transformers import AutoModelForImageTextToText, logging
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES

from flashvid_hf.models.tensor_parallel import mean_over_heads
from flashvid_hf.models.upstream import CACHE

# Videos of one length; the shorter prompt is padded.
PROMPTS = (["text", (4, 8, 8), "text"], ["text", (4, 8, 8), "text", "text"])
WORLD_SIZE = 2

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@torch.no_grad()
def answer(model, inputs, max_new_tokens: int = 4) -> dict:
    """Logits, the columns that are left, greedy ids, and the counts of the reports."""
    forward = model(**inputs)
    settings = {"do_sample": False, "suppress_tokens": [IMAGE, VIDEO], "return_dict_in_generate": True}
    generated = model.generate(**inputs, **settings, max_new_tokens=max_new_tokens)
    reports = (forward.report, *generated[CACHE].reports)
    return {
        "logits": forward.logits,
        "columns": forward.token_index,
        "ids": generated.sequences,
        "counts": [(r.tokens, r.entered, r.remained, r.segment_lengths) for r in reports],
    }


def assert_same(found: dict, expected: dict) -> None:
    """Assert equal decisions, and logits equal within the rounding of another order of summation."""
    assert found["counts"] == expected["counts"]
    for tokens, entered, remained, _ in expected["counts"]:
        assert all(a > b > c for a, b, c in zip(tokens, entered, remained, strict=True))
    assert torch.equal(found["columns"], expected["columns"])
    torch.testing.assert_close(found["logits"], expected["logits"], atol=2e-5, rtol=1e-5)
    assert torch.equal(found["ids"], expected["ids"])


# Tensor parallelism.


def attention_plan(family) -> dict[str, str]:
    """A `tp_plan` that shards the attention heads of the language model, and those of the vision tower where it can.

    Qwen's towers project queries, keys and values together, and take the number of heads from their configuration.
    """
    linear = {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise"}
    layers = "model.language_model.layers.*"
    plan = {f"{layers}.self_attn.{name}": style for name, style in {**linear, "o_proj": "rowwise"}.items()}
    if family.vision_tower == "vision_tower":
        tower = "model.vision_tower.encoder.layers.*.self_attn"
        plan |= {f"{tower}.{name}": style for name, style in {**linear, "out_proj": "rowwise"}.items()}
    if family.name == "qwen3_vl_moe" and "replicate" in ALL_PARALLEL_STYLES:
        # Later transformers also shard the experts, and then cannot load the transposed experts of checkpoints.
        experts = ("experts", "experts.gate_up_proj", "experts.down_proj")
        plan |= {f"{layers}.mlp.{name}": "replicate" for name in experts}
    return plan


def load_on_ranks(family, folder: Path, plan: str):
    if plan == "auto":
        return AutoModelForImageTextToText.from_pretrained(folder, tp_plan="auto")
    config = DistributedConfig(tp_size=WORLD_SIZE, tp_plan=attention_plan(family))
    return AutoModelForImageTextToText.from_pretrained(folder, distributed_config=config)


def local_heads(attention) -> int:
    weight = attention.q_proj.weight
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    return len(local) // attention.head_dim


def run_rank(rank: int, root: Path) -> None:
    """Write the results of one of two processes, for every model with every plan, to a file."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD_SIZE))
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    distributed.init_process_group(
        "gloo", f"file://{root / 'store'}", timedelta(minutes=2), world_size=WORLD_SIZE, rank=rank
    )
    found = {}
    for family in FAMILIES:
        for plan in ("auto", "attention"):
            try:
                model = load_on_ranks(family, root / family.name, plan)
            except RuntimeError as error:
                found[family.name, plan] = error
                continue
            result = answer(model, family.inputs(*PROMPTS))
            result["heads"] = local_heads(model.model.language_model.layers[0].self_attn)
            if plan == "attention" and family.vision_tower == "vision_tower":
                result["vision heads"] = local_heads(model.model.vision_tower.encoder.layers[0].self_attn)
            found[family.name, plan] = result
    torch.save(found, root / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def run_ranks(root: Path) -> None:
    for family in FAMILIES:
        family.model().save_pretrained(root / family.name)
    multiprocessing.start_processes(run_rank, (root,), WORLD_SIZE, start_method="spawn")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """The results of each rank, by family and plan."""
    root = once(tmp_path_factory, "ranks", run_ranks)
    return [torch.load(root / f"{rank}.pt", weights_only=False) for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("plan", ["auto", "attention"])
@each_family
@pytest.mark.slow
def test_tensor_parallel(family, plan, ranks):
    expected = answer(family.model(), family.inputs(*PROMPTS))
    for found in (of_rank[family.name, plan] for of_rank in ranks):
        if isinstance(found, RuntimeError):  # also raised by upstream's model
            assert (family.name, plan) == ("qwen3_vl_moe", "auto") and "mismatched" in str(found)
            continue
        assert_same(found, expected)
        if (family.name, plan) != ("qwen3_vl", "auto"):  # upstream's plan then shards at most the head
            assert found["heads"] == 2
        assert found.get("vision heads", 1) == 1


def test_heads_of_unknown_ranks_are_refused():
    with pytest.raises(ValueError, match="`num_attention_heads` is 4, and this process has 2 of them in a Linear"):
        mean_over_heads(torch.zeros(1, 3), 2, 4, torch.nn.Linear(4, 4))


# Offloading.


@pytest.mark.parametrize("offloaded", ["every other layer and the vision tower", "the base model", "everything"])
@each_family
@pytest.mark.slow
def test_device_map_with_offloading(family, offloaded, tmp_path):
    native = family.model()
    native.save_pretrained(tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", device_map=device_map(native, offloaded), offload_folder=tmp_path / "offload"
    )
    assert type(model) is type(native) and any(parameter.is_meta for parameter in model.parameters())
    inputs = family.inputs(*PROMPTS)
    if family.vision_tower == "vision_tower" and not offloaded.startswith("every other"):
        # From transformers 5.18 on `generate` encodes outside `forward`, where upstream does not find the newline
        # either.
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, native(**inputs).logits, atol=2e-5, rtol=1e-5)
    else:
        assert_same(answer(model, inputs), answer(native, inputs))


@each_family
def test_automatic_device_map_fills_the_memory_and_then_the_disk(family, tmp_path):
    native = family.model()
    native.save_pretrained(tmp_path / "model")
    size = sum(parameter.nbytes for parameter in native.parameters())
    model = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": 2 * size // 3},
        offload_folder=tmp_path / "offload",
    )
    assert {"cpu", "disk"} <= {str(place) for place in model.hf_device_map.values()}
    inputs = family.inputs(*PROMPTS)
    assert_same(answer(model, inputs), answer(native, inputs))


# Recomputation and compilation.


def train(model, inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss over the text, and the gradients."""
    unseen = (inputs["input_ids"] == VIDEO) | (inputs["attention_mask"] == 0)
    outputs = model.train()(**inputs, labels=inputs["input_ids"].masked_fill(unseen, -100))
    model.zero_grad()
    outputs.loss.backward()
    return outputs.loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# The method has this name in transformers 5.17 too.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
@each_family
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(family, use_reentrant):
    model, inputs = family.model(), family.inputs(*PROMPTS)
    expected_loss, expected = train(model, inputs)
    assert any(family.vision_tower in name for name in expected)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:  # the reentrant form recomputes only layers that have an input with a gradient
        model.enable_input_require_grads()
    loss, gradients = train(model, inputs)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-4)


@each_family
@pytest.mark.slow
def test_compiled(family):
    model, inputs = family.model(), family.inputs(*PROMPTS)
    with torch.no_grad():
        expected = model(**inputs)
        torch.compiler.reset()
        model.compile(backend="eager")
        compiled = model(**inputs)
    assert torch.equal(compiled.token_index, expected.token_index)
    torch.testing.assert_close(compiled.logits, expected.logits, atol=2e-5, rtol=1e-5)
    if family.name == "qwen2_5_vl":  # one family, because every length of a prompt is compiled anew
        expected = answer(family.model(), inputs, max_new_tokens=2)
        assert_same(answer(model, inputs, max_new_tokens=2), expected)


# Low precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_family
def test_loaded_in_low_precision(family, dtype, tmp_path):
    native = family.model()
    inputs = family.inputs(*PROMPTS)
    expected = answer(native, inputs)
    native.save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype)
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    assert_same_counts(answer(model, inputs), expected, dtype)
    assert_same_counts(answer(native.to(dtype), inputs), expected, dtype)


@each_family
def test_autocast(family):
    model, inputs = family.model(), family.inputs(*PROMPTS)
    expected = answer(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_counts(answer(model, inputs), expected, torch.bfloat16)


def assert_same_counts(found: dict, expected: dict, dtype: torch.dtype) -> None:
    """Assert that as many tokens are kept. Which ones may differ if their scores are within the rounding."""
    assert [counts[:3] for counts in found["counts"]] == [counts[:3] for counts in expected["counts"]]
    assert found["logits"].dtype == dtype and found["logits"].isfinite().all()


# Adapters.


def add_lora(model):
    """An adapter on queries and keys, whose scores choose the tokens, with weights that change the answer."""
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj", "qkv"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    return model.eval()


# PEFT 0.21 reads the old name of an attribute of transformers.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@each_family
def test_peft_adapters(family, tmp_path):
    inputs = family.inputs(*PROMPTS)
    plain = answer(family.model(), inputs)
    torch.manual_seed(0)
    adapted = add_lora(family.model())
    expected = answer(adapted, inputs)
    assert not torch.equal(expected["columns"], plain["columns"])
    with adapted.disable_adapter():
        assert_same(answer(adapted, inputs), plain)
    adapted.save_pretrained(tmp_path)
    loaded = family.model()
    loaded.load_adapter(tmp_path)
    assert_same(answer(loaded.eval(), inputs), expected)
    merged = answer(adapted.merge_and_unload(), inputs)
    assert merged["counts"] == expected["counts"]
    torch.testing.assert_close(merged["logits"], expected["logits"], atol=2e-4, rtol=1e-4)
