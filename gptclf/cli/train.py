"""`gptclf train`: from a file of labelled texts to a folder."""

from argparse import Namespace
from collections import Counter
from typing import Any

from gptclf.checks import naming, path
from gptclf.cli.datasets import check_columns, read_dataset
from gptclf.cli.flags import UsageError
from gptclf.cli.labels import by_label
from gptclf.cli.parser import names_of
from gptclf.cli.settings import SETTINGS, settings_text
from gptclf.cli.targets import check_target, holds_something
from gptclf.data.dataset import TextDataset
from gptclf.data.splits import split
from gptclf.files.access import readable_size
from gptclf.files.atomic import text_writer, write_file
from gptclf.gpt2.classifier import add_classifier_head
from gptclf.gpt2.freezing import freeze
from gptclf.gpt2.lora import apply_lora
from gptclf.gpt2.model import GPT2
from gptclf.inference.calibrate import calibrate
from gptclf.inference.evaluate import evaluate
from gptclf.progress import write_line
from gptclf.saving.save_adapter import save_adapter
from gptclf.saving.save_model import save_model
from gptclf.tasks import SingleLabel
from gptclf.training.callbacks import EarlyStopping, KeepBest
from gptclf.training.checkpoint import Checkpoint
from gptclf.training.history import History
from gptclf.training.run import Callback
from gptclf.training.train import train
from gptclf.weights.load_gpt2 import load_gpt2

_INTERRUPTED = 130


def run(args: Namespace) -> int:
    """Train a classifier, save it with its settings, and print its measures on the validation set."""
    _check(args)
    out = check_target("--out", args.out, force=args.force or _resumes(args))
    flags = ("text", "label") if args.weights is None else ("text", "label", "weights")
    check_columns(args, args.data, flags)
    if args.valid is not None:
        check_columns(args, args.valid, flags[:2])
    gpt2 = load_gpt2(args.model, device=args.device)
    train_set, val_set = _data(args, gpt2)
    task = _task(args, train_set.classes)
    with naming(args.data):
        task.check_outputs()
    _say_labels(task.classes, [train_set] if val_set is None else [train_set, val_set], quiet=args.quiet)
    clf = _classifier(args, gpt2, task)
    history = _train(args, clf, train_set, val_set)
    if args.calibrate and val_set is not None:
        clf = calibrate(clf, val_set, scoring=args.scoring, cache_dir=args.cache_dir)
    said: dict[str, Any] = {"data": f"{len(train_set):,} rows of `{path('data', args.data).name}`."}
    report: Any = history.epochs[-1] if history.epochs else "no epoch was completed"
    if val_set is not None:
        report = evaluate(clf, val_set, precision=args.precision, cache_dir=args.cache_dir)
        if len(only := set(report.predictions)) == 1 < len(task.classes):
            advice = "more --epochs or a higher --lr may help; nano wants about 1e-3"
            write_line(f"gptclf: every validation text is answered {only.pop()!r}; {advice}")
        share = f"{args.valid_fraction} of `{path('data', args.data).name}`, left out of training"
        said |= {
            "metrics": report.measures,
            "measured_on": share if args.valid is None else path("valid", args.valid).name,
        }
    if history.stopped == "interrupted" and holds_something(out):
        write_line(f"gptclf: {out} is left as it was")
        out = out.with_name(f"{out.name}.interrupted")
    (save_model if args.lora_rank is None else save_adapter)(clf, out, **said)
    write_file(out / SETTINGS, text_writer(settings_text(args, names_of("train"))))
    if not args.quiet:
        write_line(f"gptclf: saved to {out}")
    print(report)
    return _INTERRUPTED if history.stopped == "interrupted" else 0


def _check(args: Namespace) -> None:
    """Raise before any work if flags contradict each other or files cannot be read."""
    for file in filter(None, (args.data, args.valid)):
        readable_size(path("data", file))
    if args.valid is not None and args.valid_fraction is not None:
        raise UsageError("--valid and --valid-fraction were both given; give one of them")
    if args.valid is None and args.valid_fraction is None:
        wanting = [name for name in ("early_stopping", "keep_best", "calibrate", "scoring") if getattr(args, name)]
        if wanting:
            raise UsageError(
                f"--{wanting[0].replace('_', '-')} needs a validation set: give --valid or --valid-fraction"
            )
    if args.resume and args.checkpoint_dir is None:
        raise UsageError("--resume needs --checkpoint-dir, the folder with the states")


def _resumes(args: Namespace) -> bool:
    """Return whether there is a state to resume from; say so if there is none."""
    if not args.resume or Checkpoint(path("checkpoint_dir", args.checkpoint_dir), None, 1).states():
        return bool(args.resume)
    write_line(f"gptclf: no state in {args.checkpoint_dir}; starts from the beginning")
    return False


def _data(args: Namespace, gpt2: GPT2) -> tuple[TextDataset, TextDataset | None]:
    options = {"tokenizer": gpt2.tokenizer, **vars(args.preparation)}
    whole = read_dataset(args, args.data, weights=args.weights, **options)
    if args.valid is not None:
        return whole, read_dataset(args, args.valid, classes=whole.classes, **options)
    if args.valid_fraction is None:
        return whole, None
    share = args.valid_fraction
    train_set, val_set = split(whole, (1 - share, share), seed=args.recipe.seed)
    return train_set, val_set


def _say_labels(classes: list[Any], sets: list[TextDataset], *, quiet: bool) -> None:
    """Say how many texts each label has, and what looks like a mistake."""
    counts = Counter(classes[i] for rows in sets if rows.labels is not None for i in rows.labels.tolist())
    shown = [f"{label if str(label) == str(label).strip() else repr(label)} {n:,}" for label, n in counts.most_common()]
    several = f"{len(shown):,} labels, from {shown[0]} to {shown[-1]}" if len(shown) > 20 else ", ".join(shown)
    if not quiet:
        write_line(f"gptclf: {counts.total():,} texts: {several}")
    alike: dict[str, list[Any]] = {}
    for label in counts:
        alike.setdefault(" ".join(str(label).split()).casefold(), []).append(label)
    for labels in [labels for labels in alike.values() if len(labels) > 1][:5]:
        write_line(f"gptclf: the labels {', '.join(map(repr, labels))} look alike, but are different classes")
    if sum(n == 1 for n in counts.values()) > len(counts) / 2:
        problem = f"most of the {len(counts):,} labels have a single text"
        write_line(f"gptclf: {problem}; does --label name the right column?")


def _task(args: Namespace, classes: Any) -> SingleLabel:
    weight = args.class_weight
    if weight not in (None, "balanced"):
        weight = by_label("--class-weight", weight, SingleLabel(classes))
    return SingleLabel(classes, class_weight=weight, label_smoothing=args.label_smoothing)


def _classifier(args: Namespace, gpt2: GPT2, task: SingleLabel) -> GPT2:
    seed, trainable = args.recipe.seed, args.trainable
    clf = add_classifier_head(gpt2, task=task, pooling=args.pooling, seed=seed)
    if args.lora_rank is not None:
        clf = apply_lora(clf, rank=args.lora_rank, alpha=args.lora_alpha, seed=seed)
    if trainable is not None:
        names = trainable.split(",")
        freeze(clf, trainable=int(trainable) if trainable.isdecimal() else names if len(names) > 1 else trainable)
    return clf


def _train(args: Namespace, clf: GPT2, train_set: TextDataset, val_set: TextDataset | None) -> History:
    callbacks: list[Callback] = []
    if args.early_stopping is not None:
        callbacks = [EarlyStopping(args.early_stopping, args.measure)]
    elif args.keep_best:
        callbacks = [KeepBest(args.measure)]
    return train(
        clf,
        train_set,
        val_set,
        recipe=args.recipe,
        callbacks=callbacks,
        checkpoint_dir=args.checkpoint_dir,
        checkpoint_every=args.checkpoint_every,
        resume=args.resume,
        cache_dir=args.cache_dir,
        recompute=args.recompute,
        progress=not args.quiet,
    )
