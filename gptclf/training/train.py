"""`train` and `train_lm`: check their arguments, then start the run that both share."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Unpack

from gptclf.data.dataset import TextDataset
from gptclf.data.windows import TextWindows
from gptclf.gpt2.arithmetic import casting
from gptclf.gpt2.layers import unseeded
from gptclf.gpt2.model import GPT2
from gptclf.inference.evaluate import labelled_rows
from gptclf.training.callbacks import Measure, Progress
from gptclf.training.checkpoint import Checkpoint
from gptclf.training.checks import check_callback, check_training_rows, check_weights, check_windows
from gptclf.training.fit import fit
from gptclf.training.history import History
from gptclf.training.optim import check_trainable
from gptclf.training.recipe import BOOK, LANGUAGE_MODEL, Recipe, RecipeChanges, lists_options, recipe_of
from gptclf.training.run import Callback, Run, RunOptions, TrainingRows

logger = logging.getLogger(__name__)


class TrainOptions(RecipeChanges, total=False):
    """The keyword arguments of `train` apart from `recipe`."""

    callbacks: Sequence[Callback] | None
    checkpoint_dir: str | Path | None
    checkpoint_every: int | None
    keep_checkpoints: int
    resume: bool
    cache_dir: str | Path | None
    cache_limit: float
    recompute: bool
    progress: bool


def _train(
    check: Callable[[GPT2, Any, str], TrainingRows],
    model: GPT2,
    train_set: TrainingRows,
    val_set: TrainingRows | None,
    recipe: Recipe,
    given: Mapping[str, Any],
) -> History:
    """Carry out a run on rows that `check` accepts for the model; `train` documents the arguments."""
    rows = check(model, train_set, "train_set")
    val_rows = None if val_set is None else check(model, val_set, "val_set")
    if val_rows is not None and (changed := val_rows.preparation.difference(rows.preparation)):
        logger.warning("val_set was prepared with %s; its measures are of other rows than training's", changed)
    check_trainable(model)
    recipe, others = recipe_of(recipe, given, [field.name for field in fields(RunOptions)])
    options = RunOptions(**others)
    callbacks = options.callbacks or ()
    for callback in callbacks:
        check_callback(callback, validates=val_set is not None)
    check_training_rows(model, rows, recipe)
    checkpoint = Checkpoint.given(options)
    run = Run(model, rows, val_rows, recipe, options)
    check_weights(run)
    own: list[Callback] = [Progress()] if options.progress else []
    own += [Measure()] if recipe.eval_every is None else [Measure(), Measure(recipe.eval_every)]
    run.callbacks = [*callbacks, *own, *([] if checkpoint is None else [checkpoint])]
    if getattr(model.head, "is_fresh", False) and not any(p.requires_grad for p in model.head.parameters()):
        logger.warning("the head does not train, and is as it was drawn; choose it too: freeze(model, trainable=...)")
    if drawing := ", ".join(unseeded(model)):
        logger.warning("%s may draw from torch's global generator, not from seed=; use torch.nn.Dropout", drawing)
    with casting("float32", model):  # the backward pass would run under an autocast around this call
        history = fit(run, None if checkpoint is None else checkpoint.begin(run, resume=options.resume))
    if history.stopped == "interrupted":
        how = "no state was kept: give checkpoint_dir= to be able to resume"
        if checkpoint is not None:
            how = f"resume with the same arguments, checkpoint_dir={str(checkpoint.path)!r} and resume=True"
        logger.warning("interrupted after step %d of %d; %s", len(history.steps), run.total_steps, how)
    return history


@lists_options(RunOptions)
def train(
    model: GPT2,
    train_set: TextDataset,
    val_set: TextDataset | None = None,
    *,
    recipe: Recipe = BOOK,
    **options: Unpack[TrainOptions],
) -> History:
    """Fine-tune a classifier with AdamW on the loss of its task; the defaults are those of the book's section 6.7.

    Trains the parameters that require grad (see `freeze`) and leaves `requires_grad` unchanged. The run is a function
    of the data, the weights and the recipe. The model records the training set's preparation, and `predict` prepares
    texts in the same way. Class and row weights affect the training loss only; measures are plain means.

    Ctrl-C ends the run after the current step. The history is returned, with `history.stopped == "interrupted"`. With
    `checkpoint_dir`, a state to resume from is written. A second Ctrl-C raises KeyboardInterrupt as usual.

    Args:
        model: A classifier; changed in place.
        train_set: Labelled rows; labels are matched to `model.classes` by name.
        val_set: Labelled rows to measure on, never trained on.
        recipe: The options that determine the steps: those listed below up to `eval_batches`. Each can also be given
            on its own, and then replaces the recipe's.
        epochs: Passes over the training set.
        batch_size: Rows per batch.
        lr: Learning rate.
        weight_decay: AdamW's decoupled weight decay.
        decay: "all" decays every parameter, as the book does; "matrices" leaves out biases and norms.
        schedule: Learning rate after the warm-up: "constant", "linear" or "cosine".
        warmup_steps: Optimizer steps over which the learning rate rises linearly.
        clip: Largest 2-norm of the gradient; None does not clip.
        accumulate: Batches per optimizer step; equal to one batch of `accumulate * batch_size` rows.
        drop_last: Leave out the last batch of an epoch if it is not full (the book's training loader does).
        seed: Determines the order of the rows and dropout.
        layer_decay: Factor on the learning rate for each block below the last one, in (0, 1].
        head_lr: Learning rate of the head; None means `lr`.
        reuse_frozen: Compute the frozen part of the model once per text and train the rest on the result, which is
            kept in memory for other runs (see `Recipe`). False computes everything at every step.
        precision: "auto", "float32" or "bfloat16" (autocast of matrix products; the weights stay float32); `Recipe`
            says what "auto" takes.
        eval_every: Also measure every this many steps, in addition to once per epoch.
        eval_batches: Measure on this many batches of each set, always the same rows, drawn at random; None measures on
            all rows.
        callbacks: Called after steps and measurements.
        checkpoint_dir: Folder for the states of the run; it is made if it does not exist.
        checkpoint_every: Steps between two states; None writes one after each epoch.
        keep_checkpoints: Number of states to keep; older ones are deleted.
        resume: Resume from the newest state in `checkpoint_dir`, with the very steps that an uninterrupted run would
            take; start at the beginning if there is none yet. What the first call had must be equal: the recipe, the
            task, the rows of both sets and how they are prepared, the frozen weights, which parameters train, and the
            callbacks that keep a state. The trained weights come from the state. Only `epochs` may grow, with a
            constant schedule.
        cache_dir: Keep the frozen part's features in this folder, for later processes as well. It is as private as the
            texts.
        cache_limit: Bytes that features may take there; those of earlier models are deleted to make room.
        recompute: Keep only the input of each trained block for the backward pass and compute the rest again there: a
            third more work, and much less memory if texts are long and many blocks train.
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
    return _train(labelled_rows, model, train_set, val_set, recipe, options)


@lists_options(RunOptions)
def train_lm(
    model: GPT2,
    train_set: TextWindows,
    val_set: TextWindows | None = None,
    *,
    recipe: Recipe = LANGUAGE_MODEL,
    **options: Unpack[TrainOptions],
) -> History:
    """Train a language model on plain text: cross-entropy of every next token, AdamW, the book's section 5.2.

    It is the stage before classification: from random weights, or to adapt a model to the language of the texts to
    classify. It trains the parameters that require grad, by the same loop as `train`. `load_gpt2` returns a frozen
    model, so first choose what to train, with `freeze(model, trainable="all")`.

    Args:
        model: A language model; changed in place.
        train_set: Windows of text, at most as long as the model's context.
        val_set: Windows to measure on, never trained on.
        recipe: The options that determine the steps, by default one epoch at a learning rate of 4e-4, measured on 5
            batches of each set.
        **options: As in `train`.

    Returns:
        The measurements. Losses are means over positions in nats, so that exp(loss) is the perplexity, and accuracy is
        the share of positions whose most probable token is right.

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
    return _train(check_windows, model, train_set, val_set, recipe, options)
