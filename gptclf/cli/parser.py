"""The commands and their flags."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptclf.cli.flags import Parser, UsageError, nearest
from gptclf.cli.settings import read_settings
from gptclf.preparation import Preparation
from gptclf.training.recipe import Recipe
from gptclf.version import __version__

_MODEL = "The trained model: a folder, a hub repository owner/name, or an adapter's folder."
_MEASURE = "The measure to watch: loss, accuracy, ..."


def parse(argv: Sequence[str]) -> Namespace:
    """Return what a command line asks for, completed from the file that `--config` names.

    `command` is the name of the command. For `train`, `recipe` and `preparation` are set as well.

    Raises:
        UsageError: There is no such command, flag, setting or value.
        SystemExit: Help or the version was asked for, and is printed.
    """
    parser = Parser(prog="gptclf", description="Fine-tune GPT-2 to classify text, and use what was trained.")
    parser.add_argument("--version", action="version", version=f"gptclf {__version__}")
    chosen = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands = {}
    for name, (add, text) in _COMMANDS.items():
        commands[name] = chosen.add_parser(name, help=text, description=text, usage=f"gptclf {name} {_USAGE[name]}")
        add(commands[name])
        commands[name].flag(
            "config", "A TOML file of settings, with the names of these flags; flags win.", metavar="FILE"
        )
        commands[name].flag("debug", "Show the traceback of an error, as GPTCLF_DEBUG=1 does.", kind=bool)
    args = _parsed(parser, commands, argv)
    if args.command is None:
        raise UsageError(f"name a command: {', '.join(commands)}; see gptclf --help")
    command = commands[args.command]
    if args.config is not None:
        command.set_defaults(**read_settings(Path(args.config), command))
        args = _parsed(parser, commands, argv)
    if missing := [name for name in command.needed if not getattr(args, name)]:
        option = command.known[missing[0]].option_strings or [missing[0].upper()]
        command.error(f"{option[0]} is missing")
    if args.command == "train":
        try:
            args.recipe = Recipe(**{name: getattr(args, name) for name in Recipe.__dataclass_fields__})
            args.preparation = Preparation(**{name: getattr(args, name) for name in Preparation.__dataclass_fields__})
        except (TypeError, ValueError) as error:
            command.error(str(error))
    return args


def names_of(command: str) -> list[str]:
    """Return the names of a command's flags and arguments."""
    parser = Parser(prog=command)
    _COMMANDS[command][0](parser)
    return list(parser.known)


def _parsed(parser: Parser, commands: dict[str, Parser], argv: Sequence[str]) -> Namespace:
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        its = commands.get(args.command, parser)
        options = [option for action in its.known.values() for option in action.option_strings]
        raise UsageError(f"there is no {unknown[0]!r}; {nearest(unknown[0].partition('=')[0], options)}")
    return args


def _file_flags(parser: Parser, *, label: bool) -> None:
    group = parser.add_argument_group("the data")
    parser.flag("text", "Column of the texts.", default="text", metavar="COLUMN", group=group)
    if label:
        parser.flag("label", "Column of the labels.", default="label", metavar="COLUMN", group=group)
        parser.flag("drop_missing", "Leave out rows without a text or a label.", kind=bool, group=group)
    parser.flag(
        "header",
        "Whether the first row names the columns; if not, they are 0, 1, ...",
        kind=bool,
        default=True,
        group=group,
    )
    delimiter = "The character between two columns; by default the one by which the first row has the columns named."
    parser.flag("delimiter", delimiter, group=group)
    parser.flag(
        "quoted", 'Whether " quotes a field; by default yes in .csv and no in .tsv.', kind=bool | None, group=group
    )
    parser.flag("encoding", "The text encoding.", default="utf-8-sig", group=group)


def _model_flags(parser: Parser) -> None:
    group = parser.add_argument_group("the model")
    parser.flag("base", "The base of an adapter, instead of the one that it names.", metavar="NAME", group=group)
    parser.flag("device", "Where to compute, such as cuda; by default the CPU.", group=group)


def _answer_flags(parser: Parser) -> None:
    group, precision = parser.add_argument_group("answers"), Recipe.__dataclass_fields__["precision"]
    parser.flag(
        "precision",
        "Arithmetic of matrix products.",
        default="auto",
        choices=precision.metadata["choices"],
        group=group,
    )
    parser.flag("temperature", "The temperature of the probabilities, instead of the model's.", kind=float, group=group)
    thresholds = "How probable a class must be to be answered, as in spam=0.9; several with commas."
    parser.flag("thresholds", thresholds, metavar="LABEL=NUMBER", group=group)


def _quiet(parser: Parser) -> None:
    parser.flag("quiet", "Show no progress; warnings and errors remain.", kind=bool)


def _train(parser: Parser) -> None:
    parser.argument("data", "The training set: a .csv, .tsv, .jsonl or .parquet file.")
    parser.flag("out", "The folder for the trained model.", metavar="FOLDER", needed=True)
    parser.flag("force", "Replace the model that --out holds.", kind=bool)
    _file_flags(parser, label=True)
    parser.flag("weights", "Column of the rows' weights in the loss.", metavar="COLUMN")
    parser.flag("valid", "A file of rows to measure on, with the same columns.", metavar="FILE")
    parser.flag(
        "valid_fraction", "Share of the training set to measure on instead, drawn by --seed.", kind=float | None
    )
    _new_model(parser)
    parser.fields_of(Recipe, "the recipe")
    parser.fields_of(Preparation, "the preparation of texts")
    _run(parser)
    _quiet(parser)


def _new_model(parser: Parser) -> None:
    group = parser.add_argument_group("the model")
    names = (
        "gpt2, gpt2-medium, gpt2-large, gpt2-xl, nano (comes with gptclf), a hub repository, a folder or a .pth file."
    )
    parser.flag("model", f"The GPT-2 to start from: {names}", default="gpt2", metavar="NAME", group=group)
    parser.flag("device", "Where to compute, such as cuda; by default the CPU.", group=group)
    policies = "head, last_block, last_two_blocks, a number of blocks, all, or names and patterns with commas."
    parser.flag(
        "trainable", f"What trains: {policies} By default the last block, or with --lora-rank the factors.", group=group
    )
    parser.flag("pooling", "Where the head looks: last (token), first, mean or max.", default="last", group=group)
    parser.flag("lora_rank", "Train LoRA factors of this rank; --out is then an adapter.", kind=int | None, group=group)
    parser.flag("lora_alpha", "Scale of the factors.", kind=float, default=16.0, group=group)
    group = parser.add_argument_group("the task")
    parser.flag("class_weight", "balanced, or weights such as spam=3,ham=1.", metavar="WEIGHTS", group=group)
    parser.flag(
        "label_smoothing", "Share of each target that is spread over all classes.", kind=float, default=0.0, group=group
    )
    parser.flag("calibrate", "Fit the temperature to the validation set after training.", kind=bool, group=group)
    parser.flag(
        "scoring", "Also fit thresholds, to maximise this: f1_macro, accuracy or balanced_accuracy.", group=group
    )


def _run(parser: Parser) -> None:
    group = parser.add_argument_group("the run")
    parser.flag(
        "early_stopping",
        "Stop after this many measurements without improvement; the best weights are kept.",
        kind=int | None,
        metavar="PATIENCE",
        group=group,
    )
    parser.flag("keep_best", "Keep the weights of the best measurement.", kind=bool, group=group)
    parser.flag("measure", _MEASURE, default="loss", group=group)
    parser.flag("checkpoint_dir", "Folder for the states of the run.", metavar="FOLDER", group=group)
    parser.flag(
        "checkpoint_every", "Steps between two states; by default one after each epoch.", kind=int | None, group=group
    )
    parser.flag("resume", "Resume from the newest state in --checkpoint-dir, if there is one.", kind=bool, group=group)
    parser.flag(
        "cache_dir", "Folder to keep the features of frozen parts in, for later runs.", metavar="FOLDER", group=group
    )
    parser.flag(
        "recompute", "Take a third more work and much less memory, if many blocks train.", kind=bool, group=group
    )


def _predict(parser: Parser) -> None:
    parser.argument("model", _MODEL)
    parser.argument(
        "data", "A .csv, .tsv, .jsonl, .parquet or .txt file; by default, or if it is -, standard input.", needed=False
    )
    parser.flag("out", "A .csv, .tsv or .jsonl file; by default JSON lines are printed.", metavar="FILE")
    formats = (
        "The format, if the suffix does not say it: lines (a text each), jsonl, csv or tsv; of standard input, lines."
    )
    parser.flag("format", formats, choices=("lines", "jsonl", "csv", "tsv"))
    _file_flags(parser, label=False)
    parser.flag("skip_missing", "Leave the answer to a missing text empty, instead of ending.", kind=bool)
    parser.flag("probabilities", "Add a column for each class.", kind=bool)
    _model_flags(parser)
    _answer_flags(parser)
    parser.flag("reject_below", "Leave the answer empty if it is less sure than this.", kind=float)
    parser.flag(
        "window", "Rows to read ahead and compute together; 1 answers each line at once.", kind=int, default=2048
    )
    _quiet(parser)


def _evaluate(parser: Parser) -> None:
    parser.argument("model", _MODEL)
    parser.argument("data", "Labelled rows: a .csv, .tsv, .jsonl or .parquet file.")
    _file_flags(parser, label=True)
    parser.flag("html", "Also write the report as a page.", metavar="FILE")
    parser.flag("json", "Print the measures as JSON.", kind=bool)
    _model_flags(parser)
    _answer_flags(parser)


def _explain(parser: Parser) -> None:
    parser.argument("model", _MODEL)
    parser.argument("texts", "The texts to explain.", nargs="*", needed=False)
    parser.flag("file", "A file of texts to explain instead.", metavar="FILE")
    _file_flags(parser, label=False)
    parser.flag("target", "The class to explain; by default the one answered.", metavar="LABEL")
    methods = ("integrated_gradients", "leave_one_out")
    parser.flag("method", "How to attribute.", default=methods[0], choices=methods)
    parser.flag("html", "Write the explanations as a page, instead of printing them.", metavar="FILE")
    _model_flags(parser)


def _summary(parser: Parser) -> None:
    parser.argument("model", _MODEL)
    parser.flag("base", "The base of an adapter, instead of the one that it names.", metavar="NAME")


def _convert(parser: Parser) -> None:
    kinds = "a folder of Hugging Face's, OpenAI's, PEFT's or ours, a .pth file of the book's, or a name such as gpt2."
    parser.argument("source", f"What to convert: {kinds}")
    parser.argument(
        "target", "A .pth file for the book's code, an .onnx file, or a folder for gptclf, transformers and PEFT."
    )
    parser.flag("force", "Replace what the target holds.", kind=bool)
    parser.flag("merge", "Merge LoRA factors into the matrices: a whole model instead of an adapter.", kind=bool)
    parser.flag("base", "The base of an adapter, instead of the one that it names.", metavar="NAME")
    parser.flag("classes", "The labels of a .pth file's classifier, with commas.", metavar="LABELS")
    parser.flag("pad_to", "The length of the rows that a .pth file's classifier was trained on.", kind=int | None)
    parser.flag(
        "n_heads",
        "The number of attention heads, if a .pth file is of a width that was not published.",
        kind=int | None,
    )


def _serve(parser: Parser) -> None:
    parser.argument("model", _MODEL)
    parser.flag("host", "The address to listen on.", default="127.0.0.1")
    parser.flag("port", "The port.", kind=int, default=8000)
    _model_flags(parser)


_COMMANDS: dict[str, tuple[Any, str]] = {
    "train": (_train, "Train a classifier on a file of labelled texts."),
    "predict": (_predict, "Classify the texts of a file or of standard input."),
    "evaluate": (_evaluate, "Measure a classifier on a file of labelled texts."),
    "explain": (_explain, "Show which words decided."),
    "summary": (_summary, "Say what a model is."),
    "convert": (_convert, "Rewrite a model for the book's code, transformers, PEFT or ONNX Runtime."),
    "serve": (_serve, "Serve a classifier as a local page and JSON."),
}
_USAGE = {
    "train": "DATA --out FOLDER [FLAGS]",
    "predict": "MODEL [DATA] [FLAGS]",
    "evaluate": "MODEL DATA [FLAGS]",
    "explain": "MODEL [TEXT ...] [FLAGS]",
    "summary": "MODEL [FLAGS]",
    "convert": "SOURCE TARGET [FLAGS]",
    "serve": "MODEL [FLAGS]",
}
