"""What `explain` and `nearest` promise, against captum, brute force and scikit-learn."""

import copy
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st

import gptclf
from gptclf import (
    GPT2,
    Head,
    MultiLabel,
    Preparation,
    Regression,
    SingleLabel,
    Task,
    TextDataset,
    add_classifier_head,
    apply_lora,
    embed,
    explain,
    freeze,
    nearest,
    predict,
    predict_logits,
    predict_proba,
    quantize,
    save_model,
    train,
)
from gptclf.explanations.spans import read
from gptclf.gpt2.heads import pool

TEXTS = [
    "win a free prize",
    "see you at six",
    "free cash, call now",
    "are you home",
    "claim the prize",
    "call me later",
]
LABELS = ["spam", "ham"] * 3
METHODS = ["integrated_gradients", "leave_one_out"]


def trained(task: Task, labels: list[Any], *, base: GPT2 | None = None, **options: Any) -> GPT2:
    """A classifier on bytes that has learned something, so that its attributions are not noise."""
    clf = add_classifier_head(byte_gpt2() if base is None else base, task=task, **{"seed": 0, **options})
    freeze(clf, trainable="all" if base is None else "head")
    data = TextDataset(TEXTS, labels, tokenizer=clf.tokenizer, task=clf.task)
    train(clf, data, epochs=15, batch_size=3, lr=2e-3, seed=0, progress=False)
    return clf


@pytest.fixture(scope="module")
def spam() -> GPT2:
    return trained(SingleLabel(["ham", "spam"]), LABELS)


def state(model: GPT2) -> list[Any]:
    parameters = [(name, p.requires_grad, p.grad, p._version, p.data_ptr()) for name, p in model.named_parameters()]
    return [parameters, [part.training for part in model.modules()], vars(model).keys(), model.task]


@pytest.mark.parametrize("steps", [5, 32])
def test_integrated_gradients_are_captums_on_the_exported_folder(spam: GPT2, tmp_path: Path, steps: int) -> None:
    attr = pytest.importorskip("captum.attr")
    transformers = pytest.importorskip("transformers")
    save_model(spam, tmp_path / "m")
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    integrated = attr.LayerIntegratedGradients(lambda ids: theirs(ids).logits, theirs.transformer.wte)
    for text, found in zip(TEXTS, explain(spam, TEXTS, "spam", n_steps=steps), strict=True):
        ids = torch.tensor([spam.tokenizer.encode_ordinary(text)])
        options = {"target": 1, "n_steps": steps, "method": "gausslegendre", "internal_batch_size": 1}
        whole = integrated.attribute(ids, torch.full_like(ids, spam.tokenizer.eot_token), **options)
        expected = whole.sum(dim=-1)[0].detach().numpy()
        np.testing.assert_allclose(found.token_attributions, expected, rtol=1e-5, atol=1e-5)


def test_attributions_add_up_and_the_gap_says_how_exactly(spam: GPT2) -> None:
    for baseline in ("end_of_text", "zeros"):
        for found in explain(spam, [*TEXTS[:3], "call!", "?" * 60], baseline=baseline):
            assert found.relative_gap is not None
            assert found.baseline_output is not None
            total, change = float(found.token_attributions.sum()), found.output - found.baseline_output
            assert found.gap == pytest.approx(change - total, abs=1e-12)
            assert found.relative_gap == pytest.approx(abs(change - total) / abs(change))
            assert total == pytest.approx(change, rel=1e-3, abs=5e-5)  # float32 is no finer
            assert found.word_attributions.sum() == pytest.approx(total, abs=1e-9)


def test_a_gap_that_stays_is_said(
    spam: GPT2, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptclf.explanations.integrated.MOST_STEPS", 20)
    monkeypatch.setattr("gptclf.explanations.integrated.POINTS", 4)
    monkeypatch.setattr("gptclf.explanations.integrated.SMALL_GAP", 0.0)
    monkeypatch.setattr("gptclf.explanations.integrated._ROUNDING", 0.0)
    assert explain(spam, TEXTS[:2])[0].n_steps == 20
    assert "2 of 2 explanations miss" in caplog.text
    caplog.clear()
    explain(spam, TEXTS[:2], n_steps=1)
    assert not caplog.messages


@pytest.mark.parametrize("baseline", ["end_of_text", "zeros"])
def test_the_baseline_is_what_it_says(spam: GPT2, baseline: str) -> None:
    [found] = explain(spam, TEXTS[:1], "spam", baseline=baseline)
    n, embedding = len(found.tokens), spam.embed
    with torch.no_grad():
        x = embedding.position.weight[:n] + (baseline == "end_of_text") * embedding.token.weight[256]
        for block in spam.blocks:
            x = block(x[None])[0]
        expected = spam.head(spam.norm(x)[None])[0, 1]
    assert found.baseline_output == pytest.approx(float(expected), abs=1e-5)
    assert found.output == pytest.approx(float(predict_logits(spam, TEXTS[:1])[0, 1]), abs=1e-5)


def test_leaving_out_equals_brute_force(spam: GPT2) -> None:
    text = "win a free prize, call now"
    [found] = explain(spam, [text], "spam", method="leave_one_out")
    # A token is a byte here, so the texts without a token are the texts without a character.
    rest = [text[:i] + text[i + 1 :] for i in range(len(text))]
    outputs = np.array([predict_logits(spam, [each])[0, 1] for each in [text, *rest]], dtype=np.float64)
    assert found.tokens == list(text)
    np.testing.assert_allclose(found.token_attributions, outputs[0] - outputs[1:], atol=2e-6)
    words = ["win", " a", " free", " prize,", " call", " now"]
    assert found.words == [word.strip() for word in words]
    without = [text.replace(word, "", 1) for word in words]
    outputs = np.array([predict_logits(spam, [each])[0, 1] for each in [text, *without]], dtype=np.float64)
    np.testing.assert_allclose(found.word_attributions, outputs[0] - outputs[1:], atol=2e-6)
    assert (found.gap, found.relative_gap, found.baseline, found.n_steps) == (None, None, None, None)


@pytest.mark.parametrize(
    ("preparation", "kept"),
    [
        (Preparation(max_length=8), slice(0, 8)),
        (Preparation(max_length=8, truncation="head"), slice(-8, None)),
        (Preparation(max_length=40, pad_to=40), slice(None)),
        (Preparation(), slice(None)),
    ],
)
def test_what_the_preparation_cuts_or_fills_up(spam: GPT2, preparation: Preparation, kept: slice) -> None:
    model, text = copy.deepcopy(spam), "free cash, call now"
    model.preparation = preparation
    for method in METHODS:
        [found] = explain(model, [text], "spam", method=method)
        n, part = len(text[kept]), text[kept]
        fillers = (preparation.pad_to or n) - n
        assert found.tokens == [*part, *["<|endoftext|>"] * fillers]
        assert [text[start:end] for start, end in found.token_spans[:n]] == list(part)
        assert found.token_spans[n:] == [(len(text), len(text))] * fillers
        assert found.words[: len(part.split())] == part.split()
        assert found.words[len(part.split()) :] == ["<|endoftext|>"] * (fillers > 0)
        assert found.truncated == (n < len(text))
    rest = [part[:i] + part[i + 1 :] for i in range(n)]
    outputs = predict_logits(model, [text, *rest])[:, 1].astype(np.float64)
    np.testing.assert_allclose(found.token_attributions[:n], outputs[0] - outputs[1:], atol=2e-6)
    assert (found.token_attributions[n:] == 0).all()


def test_the_middle_of_a_long_text_is_left_out(spam: GPT2) -> None:
    model = copy.deepcopy(spam)
    model.preparation = Preparation(max_length=6, truncation="middle")
    [found] = explain(model, ["abcdefghij"])
    assert found.tokens == list("abchij")
    [word] = found.words
    assert word == "abcdefghij"


def variants() -> dict[str, GPT2]:
    """Tasks, poolings and layers, each trained a little."""
    both, numbers = [["a", "b"], [], ["a"]] * 2, [[0.5, 1.0], [-1.0, 0.0], [2.0, -0.5]] * 2
    single = SingleLabel(["ham", "spam"])
    adapted = apply_lora(add_classifier_head(byte_gpt2(), task=single, seed=0), 2, 4)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            parameter.add_(0.1 if "lora" in name.lower() or parameter.requires_grad else 0.0)
    return {
        "two classes per text": trained(MultiLabel(["a", "b"]), both),
        "two measurements": trained(Regression(2), numbers),
        "mean": trained(single, LABELS, pooling="mean"),
        "max": trained(single, LABELS, pooling="max"),
        "first": trained(single, LABELS, pooling="first"),
        "lora": adapted,
        "nf4": trained(single, LABELS, base=quantize(byte_gpt2(), "nf4")),
    }


@pytest.mark.filterwarnings("ignore")
def test_every_task_pooling_and_layer_has_captums_attributions() -> None:
    attr = pytest.importorskip("captum.attr")
    for name, model in variants().items():
        before = state(model)
        for output in range(2):
            target = model.task.target_of(output)
            [found] = explain(model, ["win a prize"], target, n_steps=16)
            ids = torch.tensor([model.tokenizer.encode_ordinary("win a prize")])
            integrated = attr.LayerIntegratedGradients(lambda ids, model=model: model(ids), model.trunk.embed.token)
            options = {"target": output, "n_steps": 16, "method": "gausslegendre"}
            whole = integrated.attribute(ids, torch.full_like(ids, 256), **options).sum(dim=-1)[0].detach().numpy()
            np.testing.assert_allclose(found.token_attributions, whole, rtol=1e-4, atol=1e-5, err_msg=name)
            assert found.target == target
        [found] = explain(model, ["win a prize"], target)
        assert abs(found.gap or 0.0) < 1e-3, name
        assert state(model) == before, name


def test_nothing_of_the_model_changes_and_the_caller_may_be_in_any_mode(spam: GPT2) -> None:
    before = state(spam)
    for method in METHODS:
        plain = explain(spam, TEXTS[:2], method=method, n_steps=4)
        with torch.inference_mode():
            modes = [explain(spam, TEXTS[:2], method=method, n_steps=4)]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            modes.append(explain(spam, TEXTS[:2], method=method, n_steps=4))
        for found in modes:
            for its, same in zip(plain, found, strict=True):
                assert (its.token_attributions == same.token_attributions).all()
    assert state(spam) == before
    training = copy.deepcopy(spam).train()
    assert (explain(training, TEXTS[:1])[0].token_attributions == explain(spam, TEXTS[:1])[0].token_attributions).all()
    assert training.training


def test_an_explanation_depends_on_its_text_alone(spam: GPT2) -> None:
    for method in METHODS:
        together = explain(spam, [*TEXTS[:3], TEXTS[0]], method=method)
        for text, its in zip(TEXTS[:3], together, strict=False):
            [alone] = explain(spam, [text], method=method)
            assert (its.token_attributions == alone.token_attributions).all()
        few = explain(spam, TEXTS[:2], method=method, batch_size=3)
        for its, same in zip(few, together, strict=False):
            np.testing.assert_allclose(its.token_attributions, same.token_attributions, atol=1e-5)


def test_the_target_is_the_answer_or_what_was_asked_for(spam: GPT2) -> None:
    found = explain(spam, TEXTS)
    assert [its.target for its in found] == [its.prediction for its in found] == predict(spam, TEXTS)
    probabilities = predict_proba(spam, TEXTS)
    for its, row in zip(found, probabilities, strict=True):
        assert its.probability == pytest.approx(row.max())
    assert [its.target for its in explain(spam, TEXTS[:3], ["spam", None, "ham"])] == ["spam", found[1].target, "ham"]
    with pytest.raises(ValueError, match=r"target is 'eggs'; the classes are \['ham', 'spam'\]"):
        explain(spam, TEXTS, "eggs")
    with pytest.raises(ValueError, match="list of 2 labels, but there are 6 texts"):
        explain(spam, TEXTS, ["ham", "spam"])
    cautious = copy.deepcopy(spam)
    cautious.task = cautious.task.adjusted(thresholds={"ham": 0.999999})
    assert [its.target for its in explain(cautious, TEXTS)] == predict(cautious, TEXTS)
    assert explain(spam, []) == []


@pytest.mark.filterwarnings("ignore")
def test_tasks_without_one_answer_say_what_is_explained() -> None:
    several = add_classifier_head(byte_gpt2(), task=MultiLabel(["a", "b", "c"]), seed=0)
    [found] = explain(several, TEXTS[:1])
    assert found.target == ["a", "b", "c"][int(predict_logits(several, TEXTS[:1]).argmax())]
    assert found.to_dict()["prediction"] == found.prediction
    one = add_classifier_head(byte_gpt2(), task=Regression(), seed=0)
    [found] = explain(one, TEXTS[:1])
    assert (found.target, found.probability) == (0, None)
    with pytest.raises(ValueError, match="target is None; give the number of the measurement, from 0 to 2"):
        explain(add_classifier_head(byte_gpt2(), task=Regression(3), seed=0), TEXTS)


def test_a_hooked_model_can_only_leave_out(spam: GPT2) -> None:
    hooked = copy.deepcopy(spam)
    hooked.trunk.register_forward_hook(lambda module, given, result: 2 * result)
    with pytest.raises(ValueError, match="embeddings cannot be replaced; remove them, or give method='leave_one_out'"):
        explain(hooked, TEXTS)
    [found] = explain(hooked, TEXTS[:1], "spam", method="leave_one_out")
    first, second = predict_logits(hooked, [TEXTS[0], TEXTS[0][1:]])[:, 1].astype(np.float64)
    assert found.token_attributions[0] == pytest.approx(first - second, abs=1e-6)
    inside = copy.deepcopy(spam)
    inside.blocks[0].register_forward_hook(lambda module, given, result: 2 * result)
    [found] = explain(inside, TEXTS[:1], "spam", n_steps=64)
    assert found.gap == pytest.approx(0.0, abs=1e-3)


# Any text, but for surrogates, which `as_read` replaces.
ANY = st.text(st.characters(codec="utf-8"), max_size=30) | st.text("ab \n\t😀é\0<&\u3000", max_size=30)


@pytest.fixture(scope="module")
def nano() -> GPT2:
    return add_classifier_head(gptclf.load_gpt2("nano"), classes=["ham", "spam"], seed=0)


@settings(max_examples=100, deadline=None)
@given(text=ANY)
def test_tokens_and_words_cover_the_text(nano: GPT2, text: str) -> None:
    found = read(text, nano)
    ids = TextDataset([text], tokenizer=nano.tokenizer).row(0)
    assert len(found.spans) == len(ids)
    covered: set[int] = set()
    for (start, end), token in zip(found.spans, ids.tolist(), strict=True):
        assert token == nano.tokenizer.eot_token or start < end
        whole = nano.tokenizer.decode_single_token_bytes(token)
        assert token == nano.tokenizer.eot_token or whole in text[start:end].encode()
        covered |= set(range(start, end))
    assert covered == set(range(len(text)))
    assert [i for word in found.words for i in word.tokens] == list(range(len(ids)))
    words = found.texts([word.span for word in found.words])
    assert words == (text.split() or [text or "<|endoftext|>"])


@settings(max_examples=30, deadline=None)
@given(text=ANY)
@pytest.mark.filterwarnings("ignore")
def test_html_shows_every_text_as_text(spam: GPT2, text: str) -> None:
    [found] = explain(spam, [text], "spam", n_steps=1)
    shown = found._repr_html_()
    assert not re.search(r"<(?!/?(div|span|b)\b)", shown)
    body = re.search(r'dir="auto">(.*?)</div>', shown, re.DOTALL)
    assert body is not None
    pictures = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\t\n" else c for c in text)
    plain = html.unescape(re.sub(r"<[^>]*>", "", body.group(1))).replace("\u2421", "\x7f")
    assert plain == (pictures or "<|endoftext|>")
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_long_text_is_shown_in_short(spam: GPT2) -> None:
    model = copy.deepcopy(spam)
    model.preparation = Preparation(max_length=32)
    for method in METHODS:
        [found] = explain(model, ["free prize " * 9_091], method=method, n_steps=1)
        assert found.truncated
        assert len(found.tokens) == 32
        assert "characters …" in found._repr_html_()
        assert len(found._repr_html_()) < 10_000


def test_surrogates_are_shown_as_the_tokenizer_reads_them(spam: GPT2) -> None:
    [found] = explain(spam, ["a\ud800b \ud83d\ude00"])
    assert found.text == "a\ufffdb \U0001f600"
    assert found.tokens == ["a", *["\ufffd"] * 3, "b", " ", *["\U0001f600"] * 4]
    assert found.output == pytest.approx(float(predict_logits(spam, ["a\ud800b \ud83d\ude00"]).max()), abs=1e-5)


def test_an_explanation_becomes_a_table_values_and_a_picture(spam: GPT2, tmp_path: Path) -> None:
    found = explain(spam, TEXTS[:2])
    its = found[0]
    values = json.loads(json.dumps(its.to_dict()))
    assert [word["text"] for word in values["words"]] == its.words
    assert [word["attribution"] for word in values["words"]] == its.word_attributions.tolist()
    assert TEXTS[0][values["words"][1]["start"] : values["words"][1]["end"]] == its.words[1]
    assert (values["target"], values["relative_gap"]) == (its.target, its.relative_gap)
    assert its.words[2] in repr(its)
    pytest.importorskip("pandas")
    frame = its.to_frame()
    assert "".join(frame["token"]) == TEXTS[0]
    assert frame.groupby("word", sort=False)["attribution"].sum().tolist() == pytest.approx(its.word_attributions)
    assert found.to_frame()["text"].tolist() == [0] * len(its.tokens) + [1] * len(found[1].tokens)
    assert list(explain(spam, []).to_frame().columns) == ["text"]
    pytest.importorskip("matplotlib")
    assert its.plot(tmp_path / "words", most=2) == tmp_path / "words.png"
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")


class Own(Head):
    """Reads the difference of the first and the last token."""

    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__()
        self.output = torch.nn.Linear(emb_dim, n_outputs)

    def pooled(self, hidden: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        return pool(hidden, lengths, "last") - pool(hidden, lengths, "first")

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        scores: torch.Tensor = self.output(self.pooled(hidden, lengths))
        return scores


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trainable", ["head", "last_block", "all"])
@pytest.mark.parametrize("pooling", ["last", "first", "mean", "own"])
def test_neighbours_are_those_of_scikit_learn(pooling: str, trainable: str) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    options: Any = {"head": Own} if pooling == "own" else {"pooling": pooling, "seed": 0}
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], **options)
    freeze(clf, trainable=trainable)
    data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer)
    before, texts = state(clf), ["win cash", "see you later", TEXTS[3], ""]

    def vectors(texts: list[str]) -> Any:
        if pooling == "own":
            return embed(clf, texts, pooling="last") - embed(clf, texts, pooling="first")
        return embed(clf, texts, pooling=pooling)

    oracle = neighbors.NearestNeighbors(n_neighbors=3, metric="cosine", algorithm="brute").fit(vectors(TEXTS))
    distances, rows = oracle.kneighbors(vectors(texts))
    for _ in range(2):  # the second time from kept features, if there are any
        found = nearest(clf, texts, data, k=3)
        np.testing.assert_allclose([its.similarities for its in found], 1 - distances, atol=1e-5)
        if pooling != "first":  # texts that begin alike are equally far
            assert [its.rows for its in found] == rows.tolist()
    for its, text in zip(found, texts, strict=True):
        assert (its.text, its.texts) == (text, [TEXTS[i] for i in its.rows])
        assert its.labels == [LABELS[i] for i in its.rows]
        assert its.prediction in ("ham", "spam")
    assert state(clf) == before


@pytest.mark.parametrize(
    ("method", "what"),
    [("integrated_gradients", "share of the output's change"), ("leave_one_out", "change of the output")],
)
def test_the_axis_of_the_bars_says_what_they_are(
    spam: GPT2, monkeypatch: pytest.MonkeyPatch, method: str, what: str
) -> None:
    pytest.importorskip("matplotlib")
    figures: list[Any] = []
    monkeypatch.setattr("gptclf.plotting.save_figure", lambda figure, path: figures.append(figure))
    explain(spam, TEXTS[:1], method=method)[0].plot("words")
    assert figures[0].axes[0].get_xlabel() == f"against  ←  {what}  →  for"


def test_no_similarity_is_above_one(spam: GPT2) -> None:
    texts = [f"{text} {number}" for text in TEXTS for number in range(20)]
    data = TextDataset(texts, ["ham", "spam"] * 60, tokenizer=spam.tokenizer)
    assert max(near.similarities[0] for near in nearest(spam, texts, data, k=1)) <= 1.0


def test_neighbours_become_a_table_values_and_html(spam: GPT2) -> None:
    data = TextDataset([*TEXTS[:5], "<script>alert(1)</script>\0"], LABELS, tokenizer=spam.tokenizer)
    found = nearest(spam, ["<i>win", "see you at six"], data, k=6)
    assert found[1].texts[0] == "see you at six"
    assert found[1].similarities[0] == pytest.approx(1.0)
    shown = found._repr_html_()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\u2400" in shown
    assert not re.search(r"<(?!/?(div|span|b|table|tr|td)\b)", shown)
    assert json.loads(json.dumps(found[0].to_dict()))["labels"] == found[0].labels
    pytest.importorskip("pandas")
    assert found.to_frame()["row"].tolist() == [*found[0].rows, *found[1].rows]
    with pytest.raises(ValueError, match="k is 7; it must be an integer of at least 1 and at most 6"):
        nearest(spam, TEXTS, data, k=7)


def test_kept_features_serve_the_neighbours(spam: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    clf = add_classifier_head(byte_gpt2(), task=SingleLabel(["ham", "spam"]), seed=0)
    data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer)
    train(clf, data, epochs=1, progress=False)
    monkeypatch.setattr("gptclf.features.frozen_prefix.compute_chunk", None)
    assert len(nearest(clf, ["win"], data)[0].rows) == 5
