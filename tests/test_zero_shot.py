"""Scores of labels against transformers' logits, one text and one label at a time."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import torch
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel

from gptclf import GPT2, add_classifier_head, load_gpt2, zero_shot
from gptclf.gpt2.attend import Attend, masked
from gptclf.tokenizer.bpe import make_encoding

CONTEXT = 64
TEXTS = ["you won a prize", "ok", "", "{label} {text} {0} {", "see you at six then", "é€😀", "ok", "x" * 20]
LABELS = ["spam", "ham", "a card payment", "card", "x"]
TEMPLATE = "Text: {text}\nCategory: {label}"


def tokenizer() -> tiktoken.Encoding:
    """Bytes and some merges, so that labels have from one to many tokens."""
    plain = byte_tokenizer()
    ranks = {plain.decode_single_token_bytes(i): i for i in range(256)}
    for token in (b" s", b"pa", b" spa", b" spam", b" h", b"am", b" ham", b": ", b"it"):
        ranks.setdefault(token, len(ranks))
    return make_encoding(ranks)


TOKENIZER = tokenizer()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2, Any]:
    config = TheirConfig(
        vocab_size=270,
        n_positions=CONTEXT,
        n_embd=20,
        n_head=4,
        n_layer=3,
        n_inner=33,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=256,
        eos_token_id=256,
        scale_attn_by_inverse_layer_idx=True,
    )
    torch.manual_seed(3)
    theirs = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    folder: Path = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    gpt2 = load_gpt2(folder)
    gpt2.tokenizer = TOKENIZER
    return gpt2, theirs


def score(theirs: Any, prompt: str, words: str) -> float:
    """Log-probability of the words after the prompt."""
    before = TOKENIZER.encode_ordinary(prompt) or [TOKENIZER.eot_token]
    name = TOKENIZER.encode_ordinary(words)
    with torch.no_grad():
        log_probs = theirs(torch.tensor([before + name])).logits[0].double().log_softmax(dim=-1)
    return sum(float(log_probs[len(before) + j - 1, token]) for j, token in enumerate(name))


def expected_scores(theirs: Any, texts: list[str], words: list[str], before: str, after: str) -> np.ndarray[Any, Any]:
    return np.array([[score(theirs, before + text + after, word) for word in words] for text in texts])


def test_scores_are_sums_of_transformers_log_probabilities(pair: tuple[GPT2, Any]) -> None:
    gpt2, theirs = pair
    answers = zero_shot(gpt2, TEXTS, LABELS, TEMPLATE)
    expected = expected_scores(theirs, TEXTS, [" " + label for label in LABELS], "Text: ", "\nCategory:")
    np.testing.assert_allclose(answers.scores, expected, rtol=0, atol=2e-5)
    probabilities = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answers.probabilities, probabilities, rtol=0, atol=1e-5)
    assert answers.scores.dtype == answers.probabilities.dtype == np.float32
    assert answers.classes == LABELS
    assert answers.labels == [LABELS[i] for i in expected.argmax(axis=1)]
    assert len({len(TOKENIZER.encode_ordinary(" " + label)) for label in LABELS}) > 3


@pytest.mark.parametrize(
    ("template", "before", "after", "blank"),
    [
        ("{text}", "", "", " "),
        ("{text}{label}", "", "", ""),
        ("{text} {label}", "", "", " "),
        ("Is '{text}' spam? Answer:", "Is '", "' spam? Answer:", " "),
        ("a{b}{text}\n{label}", "a{b}", "\n", ""),
        ("{text}:  {label}", "", ": ", " "),
        ("{} {text}: “{label}", "{} ", ": “", ""),
    ],
)
def test_a_blank_before_the_label_belongs_to_its_words(
    pair: tuple[GPT2, Any], template: str, before: str, after: str, blank: str
) -> None:
    gpt2, theirs = pair
    words = {1: "yes", 0: "no", None: "it"}
    expected = expected_scores(theirs, TEXTS, [blank + word for word in words.values()], before, after)
    answers = zero_shot(gpt2, TEXTS, words, template)
    np.testing.assert_allclose(answers.scores, expected, rtol=0, atol=2e-5)
    assert answers.classes == [1, 0, None]


def test_default_template_names_text_and_category(pair: tuple[GPT2, Any]) -> None:
    gpt2, _ = pair
    assert np.array_equal(zero_shot(gpt2, TEXTS, LABELS).scores, zero_shot(gpt2, TEXTS, LABELS, TEMPLATE).scores)


def test_normalized_scores_are_means_over_tokens(pair: tuple[GPT2, Any]) -> None:
    gpt2, _ = pair
    lengths = np.array([len(TOKENIZER.encode_ordinary(" " + label)) for label in LABELS])
    plain = zero_shot(gpt2, TEXTS, LABELS).scores
    np.testing.assert_allclose(zero_shot(gpt2, TEXTS, LABELS, normalize=True).scores, plain / lengths, rtol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_calibration_subtracts_the_scores_of_a_text_without_content(pair: tuple[GPT2, Any], normalize: bool) -> None:
    gpt2, _ = pair
    plain = zero_shot(gpt2, [*TEXTS, "N/A"], LABELS, normalize=normalize)
    answers = zero_shot(gpt2, TEXTS, LABELS, normalize=normalize, calibrate="N/A")
    assert answers.scores.shape == (len(TEXTS), len(LABELS))
    np.testing.assert_allclose(answers.scores, plain.scores[:-1] - plain.scores[-1], rtol=0, atol=2e-5)
    if not normalize:  # as the paper has it: probabilities divided by those of the text without content
        divided = plain.probabilities[:-1] / plain.probabilities[-1]
        np.testing.assert_allclose(answers.probabilities, divided / divided.sum(axis=1, keepdims=True), atol=1e-5)
    same = zero_shot(gpt2, ["N/A"], LABELS, normalize=normalize, calibrate="N/A")
    np.testing.assert_allclose(same.probabilities, 1 / len(LABELS), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(max_codepoint=0x2FF), max_size=30), max_size=6),
    labels=st.lists(st.text("abm ps", min_size=1, max_size=9).filter(str.strip), min_size=2, max_size=5, unique=True),
)
def test_every_text_gets_the_answer_it_gets_alone_and_by_a_model_that_is_watched(
    pair: tuple[GPT2, Any], texts: list[str], labels: list[str]
) -> None:
    gpt2, _ = pair
    together = zero_shot(gpt2, texts, labels).scores
    assert together.shape == (len(texts), len(labels))
    for text, scores in zip(texts, together, strict=True):
        np.testing.assert_allclose(zero_shot(gpt2, [text], labels).scores[0], scores, rtol=0, atol=2e-5)
    handle = gpt2.trunk.blocks[0].register_forward_hook(lambda *_: None)
    try:
        np.testing.assert_allclose(zero_shot(gpt2, texts, labels).scores, together, rtol=0, atol=2e-5)
    finally:
        handle.remove()


def test_many_texts_are_computed_in_parts(pair: tuple[GPT2, Any]) -> None:
    gpt2, _ = pair
    texts = [TEXTS[i % len(TEXTS)] for i in range(300)]
    once = zero_shot(gpt2, TEXTS, LABELS)
    many = zero_shot(gpt2, texts, LABELS)
    np.testing.assert_allclose(many.scores, once.scores[np.arange(300) % len(TEXTS)], rtol=0, atol=2e-5)
    assert len(many.labels) == 300


def test_a_hook_changes_the_answers(pair: tuple[GPT2, Any]) -> None:
    gpt2, _ = pair
    before = zero_shot(gpt2, TEXTS, LABELS).scores
    handle = gpt2.trunk.blocks[1].register_forward_hook(lambda module, args, output: -output)
    after = zero_shot(gpt2, TEXTS, LABELS).scores
    handle.remove()
    assert np.abs(after - before).max() > 0.1


def test_each_prompt_is_computed_once_for_all_labels(pair: tuple[GPT2, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2, _ = pair
    shapes: list[tuple[int, ...]] = []

    def watched(sees: torch.Tensor) -> Attend:
        shapes.append(tuple(sees.shape[:2]))
        return masked(sees)

    monkeypatch.setattr("gptclf.language.zero_shot.masked", watched)
    zero_shot(gpt2, ["ab", "ab"], {"spam": "spam", "ham": "ham"}, "{text}:")
    assert shapes == [(2, 3)], "labels of one token cost nothing"
    zero_shot(gpt2, ["ab", "ab"], ["spam", "xyz"], "{text}:")
    assert shapes[1:] == [(2, 3 + 3)]


# Texts that are too long


@pytest.mark.parametrize("labels", [LABELS, {"spam": "yes", "ham": "no"}], ids=["long", "short"])
def test_a_long_text_loses_its_tail_and_nothing_else(
    pair: tuple[GPT2, Any], labels: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gpt2, theirs = pair
    words = [" " + word for word in (labels.values() if isinstance(labels, dict) else labels)]
    longest = max(len(TOKENIZER.encode_ordinary(word)) for word in words)
    template = len(TOKENIZER.encode_ordinary("Text: \nCategory:"))
    text = "abcdefghij" * 30
    room = CONTEXT + 1 - longest - template
    with caplog.at_level(logging.WARNING):
        answers = zero_shot(gpt2, ["ok", text, text[:room], text[: room + 1]], labels, TEMPLATE)
    assert "2 of 4 texts" in caplog.text
    kept = ["ok", text[:room], text[:room], text[:room]]
    # The last token of a label is only predicted; their model has to read it to be asked with it.
    expected = []
    for one in kept:
        prompt = TOKENIZER.encode_ordinary("Text: " + one + "\nCategory:")
        row = []
        for word in words:
            name = TOKENIZER.encode_ordinary(word)
            with torch.no_grad():
                logits = theirs(torch.tensor([prompt + name[:-1]])).logits[0].double().log_softmax(dim=-1)
            row.append(sum(float(logits[len(prompt) + j - 1, token]) for j, token in enumerate(name)))
        expected.append(row)
    np.testing.assert_allclose(answers.scores, np.array(expected), rtol=0, atol=2e-5)


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from(" spamhit:é€😀\n"), min_size=40, max_size=400))
def test_any_long_text_fits_in_the_end(pair: tuple[GPT2, Any], text: str) -> None:
    gpt2, _ = pair
    answers = zero_shot(gpt2, [text], LABELS, TEMPLATE)
    assert np.isfinite(answers.scores).all()


def test_a_character_is_kept_whole_or_not_at_all(pair: tuple[GPT2, Any]) -> None:
    gpt2, _ = pair
    words = {1: "y", 0: "n"}
    # A prompt has room for the context's tokens but the label's last, and one byte of these three is left over.
    room = CONTEXT + 1 - max(len(TOKENIZER.encode_ordinary(" " + word)) for word in words.values()) - len(":")
    whole = "a" * ((room - 1) % 3) + "€" * ((room - 1) // 3)
    expected = zero_shot(gpt2, [whole], words, "{text}:").scores
    np.testing.assert_allclose(zero_shot(gpt2, [whole + "€" * 9], words, "{text}:").scores, expected, atol=2e-5)


def test_a_template_that_leaves_no_room_is_refused(pair: tuple[GPT2, Any]) -> None:
    gpt2, _ = pair
    for template, labels in (("x" * 80 + "{text}", LABELS), ("{text}", ["a" * 80, "b"])):
        with pytest.raises(ValueError, match="template and labels alone are longer"):
            zero_shot(gpt2, ["ok"], labels, template)


# Errors


@pytest.mark.parametrize("template", ["", "text", "{label}", "{text}{text}", "{label}: {text}", "{text} {label}."])
def test_templates_without_a_place_for_text_or_with_more_behind_the_label_are_refused(
    pair: tuple[GPT2, Any], template: str
) -> None:
    with pytest.raises(ValueError, match="template is"):
        zero_shot(pair[0], ["ok"], LABELS, template)


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ("spam", TypeError),
        (5, TypeError),
        ({"a", "b"}, TypeError),
        ([0, 1], TypeError),
        (["a", None], TypeError),
        ({"a": "x", "b": 1}, TypeError),
        (["a", "a"], ValueError),
        ({"a": "x", "b": "x"}, ValueError),
        (["a", " "], ValueError),
        (["a", ""], ValueError),
        (["a"], ValueError),
        ([], ValueError),
    ],
)
def test_labels_that_cannot_be_told_apart_or_have_no_words_are_refused(
    pair: tuple[GPT2, Any], labels: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="label"):
        zero_shot(pair[0], ["ok"], labels)


def test_other_wrong_arguments_are_named(pair: tuple[GPT2, Any]) -> None:
    gpt2, _ = pair
    clf = add_classifier_head(gpt2, classes=["a", "b"], seed=0)
    with pytest.raises(TypeError, match="classifier"):
        zero_shot(clf, ["ok"], LABELS)
    with pytest.raises(TypeError, match="texts is a single str"):
        zero_shot(gpt2, "ok", LABELS)
    with pytest.raises(TypeError, match="text 1 is 5"):
        zero_shot(gpt2, ["a", 5], LABELS)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="template is a"):
        zero_shot(gpt2, ["a"], LABELS, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="calibrate is a"):
        zero_shot(gpt2, ["a"], LABELS, calibrate=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision is"):
        zero_shot(gpt2, ["a"], LABELS, precision="half")
    assert zero_shot(gpt2, [], LABELS).probabilities.shape == (0, len(LABELS))
