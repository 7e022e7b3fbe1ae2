"""Classifiers that the book's code or `transformers` saved."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gptclf import checks
from gptclf.files.safetensors_file import read_safetensors
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.model import GPT2
from gptclf.preparation import Preparation
from gptclf.saving.card import CARD, is_our_card
from gptclf.saving.record import ORIGINALS, SAVE_MARK, damaged
from gptclf.tasks import SingleLabel, check_labels, task_from_transformers
from gptclf.weights import opened
from gptclf.weights.book import is_book, read_book
from gptclf.weights.folders import CONFIG, OURS, WEIGHTS, read_files, read_weights
from gptclf.weights.guess import guess_from_tensors

logger = logging.getLogger(__name__)


def load_book(path: Path, classes: Iterable[Any] | None, settings: opened.Settings | None, pad_to: int | None) -> GPT2:
    """Load a file of the book's classifier; the arguments are those of `load_model`."""
    tensors = read_files(path)
    if not is_book(tensors):
        guess = guess_from_tensors(tensors) or f"Give the folder that holds it and its {CONFIG}"
        raise ValueError(f"{path} does not hold a model of the book's. {guess}")
    config, ours, n_classes = read_book(tensors, opened.book_settings(settings), source=str(path))
    if n_classes is None:
        raise ValueError(f"{path} holds a language model; load it with load_gpt2")
    labels = list(range(n_classes)) if classes is None else check_labels(classes, "class")
    if len(labels) != n_classes:
        raise ValueError(f"classes has {len(labels)} labels, but the head in {path} has {n_classes} rows")
    pad_to = checks.integer("pad_to", pad_to, 1, most=config.context_length, optional=True)
    if pad_to is None:
        problem = "the book's classifier reads the last column of padded rows, and answers by chance without padding"
        remedy = "give load_model the length of its training rows as pad_to= (120 in the book)"
        logger.warning("%s: %s; %s", path, problem, remedy)
    head = ClassifierHead(config.emb_dim, n_classes, bias="head.output.bias" in ours)
    model = opened.build(opened.Opened(config, ours), task=SingleLabel(labels), head=head)
    model.preparation = Preparation(pad_to=pad_to)
    return model


def load_transformers(source: Path) -> GPT2:
    """Load a folder with a classifier that `transformers` saved."""
    marked = (source / WEIGHTS).is_file() and SAVE_MARK in read_safetensors(source / WEIGHTS)[1]
    if marked or (source / ORIGINALS).is_file() or is_our_card(source / CARD):
        problem = f"{source} was written by save_model, but its {OURS} is missing: labels and preparation would be lost"
        raise FileNotFoundError(f"{problem}. Copy the whole folder again, or save the model again")
    config, values = opened.read_hugging_face_config(source)
    score = read_weights(source).get("score.weight")
    if score is None:
        raise ValueError(f"{source} does not hold a classifier (no score.weight); load a language model with load_gpt2")
    if not score.is_floating_point() or score.dim() != 2:
        problem = f"{source} holds a score.weight of {score.dtype} {tuple(score.shape)}; the head must be floats"
        raise ValueError(f'{problem}. Quantise it with llm_int8_skip_modules=["score"]')
    n = len(score)
    labels = values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(n)}
    if not isinstance(labels, dict) or set(labels) != {str(i) for i in range(n)}:
        problem = f"{source}: id2label is {labels!r}, but score.weight has {n} rows"
        raise ValueError(f"{problem}; its keys must be 0 to {n - 1}")
    with damaged(source / CONFIG):
        task = task_from_transformers(values.get("problem_type"), [labels[str(i)] for i in range(n)])
    head = ClassifierHead(config.emb_dim, n, bias=False)
    model = opened.build(opened.open_hugging_face(source, config, task=task, head=head), task=task, head=head)
    model.preparation = Preparation()
    return model
