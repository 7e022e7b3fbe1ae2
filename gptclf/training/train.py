"""`train` and `train_lm`: what is trained on what, checked and handed to the one run."""

from collections.abc import Sequence
from pathlib import Path

from gptclf.data.dataset import TextDataset
from gptclf.data.windows import TextWindows
from gptclf.features.store import DISK_LIMIT
from gptclf.gpt2.model import GPT2
from gptclf.inference.evaluate import labelled_rows
from gptclf.inference.predict import check_classifier
from gptclf.language.checks import check_language_model
from gptclf.training.callbacks import Callback
from gptclf.training.checks import check_model, check_rows, check_windows
from gptclf.training.history import History
from gptclf.training.run import Settings, fit


def train(
    model: GPT2,
    train_set: TextDataset,
    val_set: TextDataset | None = None,
    *,
    epochs: int = 5,
    batch_size: int = 8,
    lr: float = 5e-5,
    weight_decay: float = 0.1,
    decay: str = "all",
    schedule: str = "constant",
    warmup_steps: int = 0,
    clip: float | None = None,
    accumulate: int = 1,
    drop_last: bool = False,
    seed: int = 123,
    reuse_frozen: bool = True,
    cache_dir: str | Path | None = None,
    cache_limit: float = DISK_LIMIT,
    recompute: bool = False,
    precision: str = "auto",
    eval_every: int | None = None,
    eval_batches: int | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Fine-tune a classifier: cross-entropy, AdamW, the defaults of the book's section 6.7.

    Trains what requires grad (see `freeze`) and leaves those flags alone. The run is a function of the data, the
    weights and the seed. `max_length`, `truncation` and `pad_to` of the training set are noted on the model, and
    `predict` prepares texts alike.

    Args:
        model: A classifier; changed in place.
        train_set: Labelled rows; labels are matched to `model.classes` by name.
        val_set: Labelled rows to measure on, never trained on.
        epochs: Times through the training set.
        batch_size: Rows per batch.
        lr: Learning rate.
        weight_decay: AdamW's decoupled decay.
        decay: "all" decays every parameter, as the book does; "matrices" leaves out biases and norms.
        schedule: "constant", "linear" or "cosine" course of the learning rate after the warm-up.
        warmup_steps: Optimizer steps of linear rise.
        clip: Largest 2-norm of the gradient; None does not clip.
        accumulate: Batches per optimizer step; equal to one batch of accumulate * batch_size rows.
        drop_last: Leave out an epoch's last batch that is not full (the book's training loader does).
        seed: Determines the order of examples and dropout.
        reuse_frozen: Compute the frozen part of the model once per text and train the rest on what it gave: the
            same losses up to rounding, many times faster. What was computed is kept in this process's memory (a
            quarter of the machine's at most), so that another run on these texts does not compute it again:
            `clear_features` forgets it. False computes everything at every step.
        cache_dir: Keep what was computed in this folder instead, for later processes, too. It is as private as the
            texts.
        cache_limit: Bytes that may take there; earlier models' features are deleted to make room.
        recompute: Keep only the input of each trained block for the backward pass and compute the rest again there: a
            third more work, much less memory where texts are long and many blocks train.
        precision: "auto", "float32" or "bfloat16" (autocast of matrix products; weights stay float32).
        eval_every: Measure loss and accuracy every so many steps, too, not only after each epoch.
        eval_batches: Measure on the first so many batches of each set; None measures on all.
        callbacks: Called after steps and measurements.
        checkpoint_dir: Keep the run's state there, written anew after each epoch.
        resume: Go on from the state in `checkpoint_dir`, with the very steps an uninterrupted run would take; start
            at the beginning if there is none yet. The run must be given what it was given before.
        progress: Show a bar and a line per measurement on standard error.

    Returns:
        The measurements.

    Raises:
        FloatingPointError: The loss became NaN or infinite; the weights are those before that step.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> data = TextDataset(["hi", "win!"] * 4, ["ham", "spam"] * 4, tokenizer=clf.tokenizer)
        >>> history = train(clf, data, epochs=3, lr=1e-3, progress=False)
        >>> history.epochs[-1].train_loss < history.steps[0].loss
        True
    """
    check_classifier(model)
    check_model(model)
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        decay=decay,
        schedule=schedule,
        warmup_steps=warmup_steps,
        clip=clip,
        accumulate=accumulate,
        drop_last=drop_last,
        seed=seed,
        reuse_frozen=reuse_frozen,
        cache_dir=cache_dir,
        cache_limit=cache_limit,
        recompute=recompute,
        precision=precision,
        eval_every=eval_every,
        eval_batches=eval_batches,
        callbacks=callbacks,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
        progress=progress,
    )
    settings.check(has_validation=val_set is not None)
    texts = labelled_rows(model, train_set, "train_set")
    val_texts = None if val_set is None else labelled_rows(model, val_set, "val_set")
    check_rows(model, texts)
    return fit(model, texts, val_texts, settings)


def train_lm(
    model: GPT2,
    train_set: TextWindows,
    val_set: TextWindows | None = None,
    *,
    epochs: int = 1,
    batch_size: int = 8,
    lr: float = 4e-4,
    weight_decay: float = 0.1,
    decay: str = "all",
    schedule: str = "constant",
    warmup_steps: int = 0,
    clip: float | None = None,
    accumulate: int = 1,
    drop_last: bool = False,
    seed: int = 123,
    reuse_frozen: bool = True,
    cache_dir: str | Path | None = None,
    cache_limit: float = DISK_LIMIT,
    recompute: bool = False,
    precision: str = "auto",
    eval_every: int | None = None,
    eval_batches: int | None = 5,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train a language model on plain text: cross-entropy of every next token, AdamW, the book's section 5.2.

    The stage before classification: from random weights, or on, in the language of the texts to classify. It trains
    what requires grad, by the same loop as `train`, and `load_gpt2` gives a frozen model: say what trains with
    `freeze(model, trainable="all")` first.

    Args:
        model: A language model; changed in place.
        train_set: Windows of text, at most as long as the model's context.
        val_set: Windows to measure on, never trained on.
        epochs: Times through the training set.
        batch_size: Windows per batch.
        lr: Learning rate.
        eval_batches: Measure on the first so many batches of each set; None measures on all.
        weight_decay: This and the rest are as in `train`.
        decay: As in `train`.
        schedule: As in `train`.
        warmup_steps: As in `train`.
        clip: As in `train`.
        accumulate: As in `train`.
        drop_last: As in `train`.
        seed: As in `train`.
        reuse_frozen: As in `train`.
        cache_dir: As in `train`.
        cache_limit: As in `train`.
        recompute: As in `train`.
        precision: As in `train`.
        eval_every: As in `train`.
        callbacks: As in `train`.
        checkpoint_dir: As in `train`.
        resume: As in `train`.
        progress: As in `train`.

    Returns:
        The measurements: losses are means over positions in nats, so that exp(loss) is the perplexity, and accuracy is
        the share of next tokens that were the likeliest.

    Raises:
        FloatingPointError: The loss became NaN or infinite; the weights are those before that step.

    Example:
        >>> from gptclf import GPT2Config, freeze, load_gpt2
        >>> small = GPT2Config(vocab_size=5000, context_length=16, emb_dim=16, n_heads=2, n_layers=1)
        >>> gpt2 = load_gpt2(small, weights="random", seed=0, tokenizer=load_gpt2("nano").tokenizer)
        >>> freeze(gpt2, trainable="all")
        >>> windows = TextWindows("to be or not to be " * 40, tokenizer=gpt2.tokenizer, length=16)
        >>> history = train_lm(gpt2, windows, epochs=4, lr=1e-2, progress=False)
        >>> history.epochs[-1].train_loss < history.steps[0].loss
        True
    """
    check_language_model(model)
    check_model(model)
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        decay=decay,
        schedule=schedule,
        warmup_steps=warmup_steps,
        clip=clip,
        accumulate=accumulate,
        drop_last=drop_last,
        seed=seed,
        reuse_frozen=reuse_frozen,
        cache_dir=cache_dir,
        cache_limit=cache_limit,
        recompute=recompute,
        precision=precision,
        eval_every=eval_every,
        eval_batches=eval_batches,
        callbacks=callbacks,
        checkpoint_dir=checkpoint_dir,
        resume=resume,
        progress=progress,
    )
    settings.check(has_validation=val_set is not None)
    check_windows(model, train_set, "train_set")
    if val_set is not None:
        check_windows(model, val_set, "val_set")
    return fit(model, train_set, val_set, settings)
