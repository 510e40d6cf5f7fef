"""What trainers get: logits of full length, and outputs that can be collected.

Trainers and their metrics compare logits with labels, column by column. So in the calls of trainers a compressed prompt
returns a row for every column.
"""

import copy

import pytest
import torch
from families import FAMILIES, IMAGE, VIDEO
from torch.nn.functional import cross_entropy
from torch.nn.parallel import scatter_gather
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from flashvid_hf import flashvid

GRID = (4, 8, 8)
# The second prompt is padded, before and after the compression.
PROMPTS = (["text", GRID, "text"], ["text", (2, 8, 4), "text"])

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
each_side = pytest.mark.parametrize("padding_side", ["left", "right"])


def with_labels(inputs: dict, seed: int = 7) -> dict:
    """Labels on text only, as collators make them; the first token of a prompt has none."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    labels = torch.randint(1, 90, ids.shape, generator=torch.Generator().manual_seed(seed))
    unseen = (ids == VIDEO) | (mask == 0) | (mask.cumsum(-1) == 1)
    return {**inputs, "labels": labels.masked_fill(unseen, -100)}


def shifted_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss that a trainer computes from logits and labels of all columns."""
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def repeated(rows: torch.Tensor, token_index: torch.Tensor, num_columns: int) -> torch.Tensor:
    """One row for each column by the definition: of the column itself, or of the last one before it that is left."""
    made = []
    for of_sample, columns in zip(rows, token_index.tolist(), strict=True):
        real = [(column, row) for row, column in enumerate(columns) if column >= 0]
        chosen = [max([row for column, row in real if column <= c], default=real[0][1]) for c in range(num_columns)]
        made.append(of_sample[chosen])
    return torch.stack(made)


class Head:
    """How many rows the language modeling head of a model sees in each call."""

    def __init__(self, model):
        self.rows: list[int] = []
        self.hook = model.lm_head.register_forward_pre_hook(lambda _, args: self.rows.append(args[0].shape[1]))

    def take(self) -> list[int]:
        taken, self.rows = self.rows, []
        return taken


@torch.no_grad()
@each_side
@each_family
def test_a_dropped_column_repeats_the_logits_before_it(family, padding_side):
    model, inputs = family.model(), with_labels(family.inputs(*PROMPTS, padding_side=padding_side))
    kept = model(**inputs, full_length=False)
    found = model(**inputs)
    num_columns = inputs["labels"].shape[1]
    assert (kept.token_index < 0).any() and kept.logits.shape[1] < num_columns
    assert torch.equal(found.logits, repeated(kept.logits, kept.token_index, num_columns))
    assert torch.equal(found.token_index, kept.token_index) and torch.equal(found.loss, kept.loss)
    torch.testing.assert_close(shifted_loss(found.logits, inputs["labels"]), found.loss)
    # Labels of dropped columns do not count, whatever they are.
    is_kept = torch.zeros(inputs["labels"].shape).scatter_(1, kept.token_index.clamp(min=0), 1.0).bool()
    assert torch.equal(model(**{**inputs, "labels": inputs["labels"].masked_fill(~is_kept, 5)}).loss, found.loss)


@torch.no_grad()
@each_family
def test_which_calls_return_full_length(family):
    model, inputs = family.model(), family.inputs(*PROMPTS)
    num_columns = inputs["input_ids"].shape[1]
    labels = with_labels(inputs)["labels"]
    num_kept = model(**inputs).token_index.shape[1]

    def length(model, **call) -> int:
        return model(**inputs, **call)[0 if model is model.base_model else "logits"].shape[1]

    assert length(model) == num_kept < num_columns
    for call in ({"labels": labels}, {"num_items_in_batch": 3}, {"full_length": True}):
        assert length(model, **call) == num_columns, call
        assert length(model, **{**call, "full_length": False}) == num_kept, call
    assert length(model.model) == num_kept
    assert length(model.model, full_length=True) == length(model.model, use_cache=False) == num_columns
    model.train()
    assert length(model) == num_columns and length(model, full_length=False) == num_kept
    model.eval().config.full_length = True
    assert length(model) == length(model.model) == num_columns and length(model, full_length=False) == num_kept
    model.train().config.full_length = False
    assert length(model, labels=labels) == length(model.model) == num_kept
    # The settings of a call keep it, and ratio 1.0 has all columns anyway.
    assert length(model, retention_ratio=0.4) == num_kept and length(model, retention_ratio=1.0) == num_columns


@torch.no_grad()
@each_family
def test_part_of_the_logits_of_full_length(family):
    """`logits_to_keep` counts columns of the input then, and the head runs on these alone."""
    model, inputs = family.model(), family.inputs(*PROMPTS, padding_side="right")
    whole = model(**inputs, full_length=True).logits
    head, columns = Head(model), torch.tensor([0, 2, whole.shape[1] - 3])
    torch.testing.assert_close(model(**inputs, full_length=True, logits_to_keep=7).logits, whole[:, -7:])
    torch.testing.assert_close(model(**inputs, full_length=True, logits_to_keep=columns).logits, whole[:, columns])
    assert head.take() == [7, 3]
    for more, name in (({"logits_to_keep": 3}, "logits_to_keep"), ({"shift_labels": inputs["input_ids"]}, "shift_")):
        with pytest.raises(ValueError, match=f"`{name}.* is"):
            model(**inputs, labels=inputs["input_ids"], **more)


@torch.no_grad()
@each_family
def test_generate_pays_nothing(family):
    """The head sees one row a step, whatever the mode and the configuration say."""
    model, inputs = family.model(), family.inputs(*PROMPTS)
    settings = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO], "eos_token_id": -1}
    expected, head = model.generate(**inputs, **settings), Head(model)
    model.train().config.full_length = True
    assert torch.equal(model.generate(**inputs, **settings), expected)
    assert torch.equal(model.generate(**inputs, **settings, full_length=True), expected)
    assert head.take() == [1] * 6


@pytest.mark.parametrize("value", [0, 1, "yes"], ids=repr)
def test_full_length_is_a_truth_value(value):
    with pytest.raises(ValueError, match=f"`full_length` is {value!r}: it must be True, False or None"):
        FAMILIES[0].model(full_length=value)


def test_the_configuration_keeps_full_length(tmp_path):
    family = FAMILIES[0]
    family.model(full_length=True).save_pretrained(tmp_path / "set")
    family.model().save_pretrained(tmp_path / "default")
    assert '"full_length": true' in (tmp_path / "set" / "config.json").read_text()
    assert "full_length" not in (tmp_path / "default" / "config.json").read_text()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "set")
    assert loaded.config.full_length and loaded.model.config.full_length
    assert (
        AutoModelForImageTextToText.from_pretrained(tmp_path / "default", full_length=False).config.full_length is False
    )


# transformers' Trainer.


def make_trainer(model, rows: list[dict], folder, **settings) -> Trainer:
    """A trainer whose rows are batches."""
    found = {}

    def compute_metrics(prediction) -> dict:
        found["logits"], found["labels"] = prediction.predictions, prediction.label_ids
        counted = prediction.label_ids[:, 1:] != -100
        hits = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
        return {"accuracy": hits[counted].mean()}

    loss = settings.pop("compute_loss_func", None)
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to="none", per_device_train_batch_size=1, per_device_eval_batch_size=1,
        max_steps=2, save_strategy="no", disable_tqdm=True, learning_rate=1e-3, **settings,
    )  # fmt: skip
    trainer = Trainer(
        model,
        arguments,
        data_collator=lambda items: dict(items[0]),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=compute_metrics,
        compute_loss_func=loss,
    )
    trainer.found = found
    return trainer


def make_model(family, made: str):
    return family.model() if made == "from the class" else flashvid(family.upstream(family.model()), 0.4)


each_model = pytest.mark.parametrize(
    ("family", "made"),
    [(family, "from the class") for family in FAMILIES] + [(FAMILIES[0], "by flashvid")],
    ids=lambda value: getattr(value, "name", value),
)


@each_model
def test_trainer_with_metrics(family, made, tmp_path):
    """Train, evaluate and predict, with batches of different length, on text and on videos."""
    model = make_model(family, made)
    batches = [family.inputs(*PROMPTS), family.inputs(["text", GRID], ["text"]), family.inputs(["text"] * 2)]
    trainer = make_trainer(model, [with_labels(batch) for batch in batches], tmp_path)
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] >= 0 and metrics["eval_loss"] > 0
    with torch.no_grad():
        singles = [model.eval()(**with_labels(batch)).logits for batch in batches]
    found, start = torch.from_numpy(trainer.found["logits"]), 0
    for logits in singles:  # padded behind its columns
        end = start + len(logits)
        torch.testing.assert_close(found[start:end, : logits.shape[1]], logits)
        start = end
    assert trainer.found["labels"].shape == found.shape[:2] and start == len(found)
    predicted = trainer.predict([with_labels(batches[0])])
    torch.testing.assert_close(torch.from_numpy(predicted.predictions), singles[0])
    before = copy.deepcopy(model.lm_head.weight)
    assert trainer.train().training_loss > 0 and not torch.equal(model.lm_head.weight, before)


@each_model
def test_trainer_that_computes_the_loss_itself(family, made, tmp_path):
    """It takes the labels away before the call, also in `evaluate`."""
    model, inputs = make_model(family, made), with_labels(family.inputs(*PROMPTS))
    with torch.no_grad():
        logits = model(**inputs).logits
    count = (inputs["labels"][:, 1:] != -100).sum()
    # transformers does not shift the labels for models of images and videos.
    smoothed = LabelSmoother(0.1)({"logits": logits}, inputs["labels"], num_items_in_batch=count)
    trainer = make_trainer(model, [inputs], tmp_path, label_smoothing_factor=0.1)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(smoothed.item(), rel=1e-4)
    assert trainer.train().training_loss > 0
    trainer = make_trainer(
        make_model(family, made), [inputs], tmp_path,
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: shifted_loss(outputs.logits, labels),
    )  # fmt: skip
    assert trainer.evaluate()["eval_loss"] == pytest.approx(shifted_loss(logits, inputs["labels"]).item(), rel=1e-4)
    assert trainer.train().training_loss > 0


@each_family
def test_upstreams_list_of_ignored_outputs_is_kept(family):
    ours = family.make_config(family.config_class).keys_to_ignore_at_inference
    theirs = getattr(family.make_config(family.upstream_config_class), "keys_to_ignore_at_inference", [])
    assert set(theirs) <= set(ours)


# TRL's SFTTrainer computes its loss and metrics itself: from the logits, or from the hidden states of the base model.


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@each_family
def test_arithmetic_of_sft_trainers(family, training):
    model, inputs = family.model().train(training), with_labels(family.inputs(*PROMPTS))
    outputs, labels = model(**inputs, use_cache=False), inputs.pop("labels")
    counted, targets = labels[:, 1:] != -100, labels[:, 1:].clamp(min=0)

    def measure(logits: torch.Tensor) -> list[torch.Tensor]:
        """Loss, token accuracy and entropy, as TRL computes them."""
        log_probs = logits.log_softmax(-1)
        loss = -log_probs.gather(-1, targets[..., None])[..., 0]
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        hits = logits.argmax(-1) == targets
        return [values[counted].float().mean() for values in (loss, hits, entropy)]

    found = measure(outputs.logits[:, :-1])
    states = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    torch.testing.assert_close(measure(model.get_output_embeddings()(states)), found)
    torch.testing.assert_close(found[0], outputs.loss)
    kept = model(**inputs, full_length=False)
    rows = [(row, kept.token_index[row, 1:] >= 0) for row in range(len(labels))]
    rows = [(row, is_real & (kept.token_index[row, :-1] >= 0)) for row, is_real in rows]
    nexts = torch.cat([labels[row, kept.token_index[row, 1:][is_real]] for row, is_real in rows])
    logits = torch.cat([kept.logits[row, :-1][is_real] for row, is_real in rows])
    hits = (logits.argmax(-1) == nexts)[nexts != -100]
    torch.testing.assert_close(found[1], hits.float().mean())


# nn.DataParallel, which Trainer uses by itself on several GPUs.


@pytest.fixture
def gather(monkeypatch):
    """`gather` of `nn.DataParallel` on the CPU, which has it only for tensors on GPUs."""

    class Gather:
        @staticmethod
        def apply(target_device, dim, *tensors):
            return torch.cat([tensor.reshape(1) if tensor.ndim == 0 else tensor for tensor in tensors], dim)

    monkeypatch.setattr(scatter_gather, "Gather", Gather)
    return lambda outputs: scatter_gather.gather(outputs, "cpu")


@torch.no_grad()
@each_family
def test_outputs_of_replicas_can_be_gathered(family, gather):
    """Although they keep different numbers of columns. The report, the cache and `token_index` stay behind."""
    model = family.model()
    replica = copy.deepcopy(model)
    for module in replica.modules():
        module._is_replica = True  # set by `nn.DataParallel`
    long, short = (with_labels(family.inputs(prompt)) for prompt in PROMPTS)
    both = with_labels(family.inputs(*PROMPTS))
    text = family.inputs(["text"] * (both["input_ids"].shape[1] // 5 + 1))
    text = {name: values[:, -both["input_ids"].shape[1] :] for name, values in text.items()}
    for with_loss in (True, False):
        outputs = []
        for inputs in (long, text):
            inputs = inputs if with_loss else {name: value for name, value in inputs.items() if name != "labels"}
            inputs = {**inputs, "labels": inputs["input_ids"]} if with_loss and "labels" not in inputs else inputs
            outputs.append(replica(**inputs))
        assert not {"report", "token_index", "cache", "past_key_values"} & outputs[0].keys()
        gathered = gather(outputs)
        assert type(gathered) is type(outputs[0]) and gathered.keys() == outputs[0].keys()
        assert torch.equal(gathered.logits, torch.cat([output.logits for output in outputs]))
        assert gathered.logits.shape[1] == long["input_ids"].shape[1]
    assert torch.equal(replica(**short).loss, model(**short).loss)
