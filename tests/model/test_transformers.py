"""A quantized model where one of transformers is expected: pipelines, the Trainer, embeddings."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision_shim  # noqa: F401  before transformers
from torch import Tensor, nn

import octavo
from octavo.errors import ArtifactError, InputError
from octavo.graph.batches import Batch, Signature
from octavo.graph.losses import fitting_loss, losses_of

transformers = pytest.importorskip("transformers")

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a good film bad the end was not".split()
LENGTH = 8
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 3,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=LENGTH)


def bert(head: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), **{**SMALL, **more})
    model: nn.Module = getattr(transformers, f"BertFor{head}")(config).eval()
    for parameter in model.parameters():
        parameter.data *= 4  # far enough from each other for decisions to be clear
    return model


def calls(tokenizer: Any) -> list[dict[str, Tensor]]:
    texts = ["a good film", "the bad end", "the film was not good", "not bad"]
    full = {"padding": "max_length", "max_length": LENGTH, "return_tensors": "pt"}
    return [dict(tokenizer(texts, **full))]


def quantized(model: nn.Module, tokenizer: Any) -> octavo.QuantizedModel:
    return octavo.quantize(model, calibration=calls(tokenizer), progress=False)


PADDED = {"padding": "max_length", "max_length": LENGTH}


def test_a_pipeline_classifies_texts(tokenizer: Any, tmp_path: Path) -> None:
    model = bert("SequenceClassification")
    q = quantized(model, tokenizer)
    q.save(tmp_path / "m.octavo")
    texts = ["a good film", "the end was bad"]
    answers = [
        transformers.pipeline("text-classification", model=m, tokenizer=tokenizer)(texts, **PADDED)
        for m in (model, q, octavo.load(tmp_path / "m.octavo"))
    ]
    for exact, mine, loaded in zip(*answers, strict=True):
        assert mine == loaded
        assert mine["label"] == exact["label"]
        assert mine["score"] == pytest.approx(exact["score"], abs=0.05)


def test_a_pipeline_labels_tokens(tokenizer: Any) -> None:
    model = bert("TokenClassification")
    text = "a good film was not"  # of LENGTH tokens less one, and padded by a word
    text += " bad"
    make = transformers.pipeline
    exact, mine = (
        make("token-classification", model=m, tokenizer=tokenizer, ignore_labels=[])(text)
        for m in (model, quantized(model, tokenizer))
    )
    assert [t["word"] for t in mine] == text.split()
    assert [t["entity"] for t in mine] == [t["entity"] for t in exact]


def test_a_pipeline_fills_masks(tokenizer: Any) -> None:
    model = bert("MaskedLM")
    exact, mine = (
        transformers.pipeline("fill-mask", model=m, tokenizer=tokenizer)(
            "a [MASK] film", tokenizer_kwargs=PADDED, top_k=3
        )
        for m in (model, quantized(model, tokenizer))
    )
    assert mine[0]["token_str"] == exact[0]["token_str"]
    assert mine[0]["score"] == pytest.approx(exact[0]["score"], abs=0.05)


def test_a_pipeline_classifies_images() -> None:
    image_module = pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=16, patch_size=8, **SMALL)
    model = transformers.ViTForImageClassification(config).eval()
    pixels = torch.rand(4, 3, 16, 16)
    q = octavo.quantize(model, calibration=[{"pixel_values": pixels}], progress=False)
    assert q.main_input_name == "pixel_values"
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    image = image_module.new("RGB", (20, 20), (200, 30, 90))
    exact, mine = (
        transformers.pipeline("image-classification", model=m, image_processor=processor)(image)
        for m in (model, q)
    )
    assert mine[0]["label"] == exact[0]["label"]
    assert mine[0]["score"] == pytest.approx(exact[0]["score"], abs=0.05)


def test_the_trainer_evaluates(tokenizer: Any, tmp_path: Path) -> None:
    model = bert("SequenceClassification")
    call = calls(tokenizer)[0]
    labels = [0, 1, 2, 1]
    rows = [{**{k: v[i] for k, v in call.items()}, "labels": n} for i, n in enumerate(labels)]

    def share(prediction: Any) -> dict[str, float]:
        return {"share": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    results = []
    for m in (model, quantized(model, tokenizer)):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=4
        )
        trainer = transformers.Trainer(m, arguments, eval_dataset=rows, compute_metrics=share)
        results.append(trainer.evaluate())
    exact, mine = results
    assert mine["eval_share"] == exact["eval_share"]
    assert mine["eval_loss"] == pytest.approx(exact["eval_loss"], abs=0.05)


def test_embeddings_of_sentences(tokenizer: Any, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers import models

    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), **SMALL)
    transformers.BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    transformer = models.Transformer(str(tmp_path))
    pooling = models.Pooling(SMALL["hidden_size"])
    embed = sentence_transformers.SentenceTransformer(modules=[transformer, pooling], device="cpu")
    texts = ["a good film was not bad", "the end was not a film"]  # of LENGTH tokens
    exact = embed.encode(texts)
    transformer.model = quantized(transformer.model, tokenizer)
    embeddings = embed.encode(texts)
    similarity = nn.functional.cosine_similarity(torch.tensor(exact), torch.tensor(embeddings))
    assert similarity.min() > 0.99
    assert not (exact == embeddings).all()


# Losses


LOSSES = {
    "classes": ("SequenceClassification", {}, {"labels": torch.tensor([0, 2, 1, 1])}),
    "several classes of one": (
        "SequenceClassification",
        {},
        {"labels": torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 1, 1]])},
    ),
    "a number": (
        "SequenceClassification",
        {"num_labels": 1},
        {"labels": torch.tensor([0.5, -1, 2, 0])},
    ),
    "numbers": (
        "SequenceClassification",
        {"problem_type": "regression"},
        {"labels": torch.linspace(-1, 1, 12).reshape(4, 3)},
    ),
    "tokens": (
        "TokenClassification",
        {},
        {"labels": (torch.arange(4 * LENGTH) % 4).sub(1).mul(1).reshape(4, LENGTH).clamp(min=-1)},
    ),
    "masks": ("MaskedLM", {}, {"labels": (torch.arange(4 * LENGTH) % 9).reshape(4, LENGTH)}),
    "next tokens": (
        "CausalLM",
        {"is_decoder": True},
        {"labels": (torch.arange(4 * LENGTH) % 9).reshape(4, LENGTH)},
    ),
    "spans": (
        "QuestionAnswering",
        {"num_labels": 2},
        {
            "start_positions": torch.tensor([1, 0, 3, 9]),
            "end_positions": torch.tensor([2, 5, 3, 0]),
        },
    ),
}


@pytest.mark.parametrize(("head", "options", "labels"), LOSSES.values(), ids=LOSSES)
def test_labels_give_the_float_models_own_loss(
    head: str, options: dict[str, Any], labels: dict[str, Tensor], tokenizer: Any
) -> None:
    if head == "CausalLM":
        model = transformers.BertLMHeadModel(
            transformers.BertConfig(vocab_size=len(WORDS), **SMALL, **options)
        ).eval()
    else:
        model = bert(head, **options)
    if head == "TokenClassification":
        labels = {"labels": labels["labels"].where(labels["labels"] >= 0, -100)}
    before = dict(vars(model.config))
    q = quantized(model, tokenizer).lower("reference")
    assert vars(model.config) == before
    call = calls(tokenizer)[0]
    exact, out = model(**call, **labels), q(**call, **labels)
    loss = fitting_loss(q.signature.losses, labels)
    assert loss is not None
    torch.testing.assert_close(loss.of(exact, labels), exact.loss)
    assert torch.equal(loss.of(out, labels), out.loss)
    assert type(out) is type(exact)
    assert next(iter(out)) == "loss"
    assert torch.equal(out[1], q(**call)[0])


def test_labels_that_no_loss_is_made_of_are_refused(tokenizer: Any) -> None:
    q = quantized(bert("TokenClassification"), tokenizer)
    call = calls(tokenizer)[0]
    with pytest.raises(InputError, match="leave the labels out of the call"):
        q(**call, labels=torch.rand(4, LENGTH))
    assert q(**call, labels=None).loss is None


class Scores(nn.Module):
    """``[N, 4]`` -> a dict of scores ``[N, 7]``, and of a loss by cross-entropy with options."""

    def __init__(self, config: object = None, **options: Any) -> None:
        super().__init__()
        self.linear, self.config, self.options = nn.Linear(4, 7), config, options

    def forward(
        self, x: Tensor, labels: Tensor | None = None, label: Tensor | None = None
    ) -> dict[str, Tensor | None]:
        logits = self.linear(x)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits, labels, **self.options)
        if loss is not None and label is not None:
            loss = loss + nn.functional.cross_entropy(logits, label)
        return {"loss": loss, "logits": logits}


def scoring(samples: int = 4, **settings: Any) -> tuple[Scores, octavo.QuantizedModel]:
    torch.manual_seed(0)
    model = Scores(**settings).eval()
    return model, octavo.quantize(
        model, torch.rand(samples, 4), progress=False, mode="weight_only"
    ).lower("reference")


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"weight": torch.arange(1.0, 8)},  # no other than the plain loss where labels are alike
        {"reduction": "sum"},  # no other than the mean of one sample
    ],
    ids=str,
)
def test_a_loss_of_its_own_is_not_guessed(options: dict[str, Any], samples: int) -> None:
    _, q = scoring(samples, **options)
    assert q.signature.losses == ()
    with pytest.raises(InputError, match="leave the labels out"):
        q(torch.rand(4, 4), labels=torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("config", [None, {"width": 4}, "text", dict])
def test_a_model_of_any_config_that_returns_a_dict(config: object) -> None:
    model, q = scoring(config=config)
    x, labels = torch.rand(5, 4), torch.arange(5)
    out = q(x, labels=labels)
    assert list(out) == ["loss", "logits"]
    torch.testing.assert_close(out["loss"], model(x, labels)["loss"], atol=0.01, rtol=0)
    assert torch.equal(out["logits"], q(x)["logits"])


def test_labels_that_the_loss_is_not_of_are_refused_and_not_left_out() -> None:
    _, q = scoring()
    x, labels = torch.rand(4, 4), torch.arange(4)
    with pytest.raises(InputError, match=r"no argument 'label'.*leave the labels out"):
        q(x, labels=labels, label=labels)
    with pytest.raises(InputError, match="leave the labels out"):
        q(x, labels=[0, 1, 2, 3])
    for wrong in (labels[:3], labels + 4):
        with pytest.raises(InputError, match=r"no loss can be made of labels of \[\d\]"):
            q(x, labels=wrong)


class Wrapper(nn.Module):
    """A model of transformers with something around it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> Any:
        return self.model(input_ids, attention_mask, labels=labels)


def test_the_config_of_a_model_inside_is_left_as_it_was(tokenizer: Any) -> None:
    model = bert("SequenceClassification")
    before = dict(vars(model.config))
    call = {n: v for n, v in calls(tokenizer)[0].items() if n != "token_type_ids"}
    losses = losses_of(Wrapper(model).eval(), Batch((), call))
    assert losses == ("cross_entropy", "binary_cross_entropy")
    assert vars(model.config) == before


def test_a_model_is_called_once_for_each_kind_of_labels() -> None:
    model, seen = Scores().eval(), []
    model.linear.register_forward_hook(lambda *_: seen.append(1))
    assert losses_of(model, Batch((torch.rand(4, 4),), {})) == ("cross_entropy",)
    assert len(seen) == 3  # without labels, with classes, with numbers


# What a model says of itself


def test_signature_config_and_dtype(tokenizer: Any, tmp_path: Path) -> None:
    model = bert("SequenceClassification", id2label={0: "bad", 1: "fair", 2: "good"})
    q = quantized(model, tokenizer)
    q.save(tmp_path / "m.octavo")
    for m in (q, octavo.load(tmp_path / "m.octavo"), q.lower("reference")):
        own = inspect.signature(model.forward).parameters
        parameters = inspect.signature(m.forward).parameters
        wanted = [n for n, p in own.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        assert set(parameters) == set(wanted)
        assert parameters["labels"].default is None
        assert type(m.config) is transformers.BertConfig
        assert m.config.id2label == model.config.id2label
        assert (m.device, m.dtype) == (torch.device("cpu"), torch.float32)
        assert m.main_input_name == "input_ids"
    assert "labels" in inspect.signature(octavo.QuantizedModel.forward).parameters


def test_without_transformers_the_config_is_a_namespace(tokenizer: Any, tmp_path: Path) -> None:
    q = quantized(bert("SequenceClassification"), tokenizer)
    q.save(tmp_path / "m.octavo")
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import octavo; config = octavo.load(sys.argv[1]).config\n"
        "print(type(config).__name__, config.model_type, config.hidden_size)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.octavo")], capture_output=True, text=True
    )
    assert run.stdout.split() == ["SimpleNamespace", "bert", "16"], run.stderr


def test_a_model_of_no_config_has_none() -> None:
    q = octavo.quantize(nn.Linear(4, 4).eval(), torch.rand(2, 4), mode="dynamic")
    assert not hasattr(q, "config")
    assert not hasattr(q, "main_input_name")
    assert list(inspect.signature(q.forward).parameters) == ["input"]
    assert inspect.signature(q.forward).parameters["input"].default is inspect.Parameter.empty


@pytest.mark.parametrize("part", [{"config": "text"}, {"main_input": 3}, {"losses": ["other"]}])
def test_a_signature_from_a_file_is_checked(part: dict[str, Any], tmp_path: Path) -> None:
    q = octavo.quantize(nn.Linear(4, 4).eval(), torch.rand(2, 4), mode="dynamic")
    q.signature = Signature(("input",), 1, **part)
    q.save(tmp_path / "m.octavo")
    with pytest.raises(ArtifactError, match="its signature"):
        octavo.load(tmp_path / "m.octavo")


def test_options_that_change_nothing_are_taken(tokenizer: Any) -> None:
    q = quantized(bert("SequenceClassification"), tokenizer)
    call = calls(tokenizer)[0]
    out = q(**call, return_dict=True, output_attentions=False, position_ids=None)
    assert torch.equal(out.logits, q(**call).logits)
    with pytest.raises(InputError, match="output_attentions"):
        q(**call, output_attentions=True)
    with pytest.raises(InputError, match="return_dict"):
        q(**call, return_dict=False)


def test_a_cache_that_is_not_wanted_is_left_out() -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=20, **sizes)).eval()
    ids = torch.randint(0, 20, (2, 6))
    q = octavo.quantize(gpt, {"input_ids": ids}, mode="weight_only")
    assert q(input_ids=ids).past_key_values is not None
    out = q(input_ids=ids, use_cache=False)
    assert list(out) == list(gpt(input_ids=ids, use_cache=False)) == ["logits"]
