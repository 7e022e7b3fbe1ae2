"""What each command takes: a class per command and per group of flags, whose docstring is the help.

Nothing here imports numpy or torch, so that help and errors of usage are immediate.
"""

from dataclasses import dataclass, field
from typing import NewType

from gptclf.checks import PRECISIONS

# Texts whose type says, in help, what to give.
Column = NewType("Column", str)
File = NewType("File", str)
Folder = NewType("Folder", str)
Name = NewType("Name", str)
Weights = NewType("Weights", str)  # LABEL=NUMBER, several with commas


# Metadata of what is given by its place, not by its name: at most one value, or any number.
_PLACE, _PLACES = {"nargs": "?"}, {"nargs": "*"}


@dataclass
class Train:
    """Train a classifier on a file of labelled texts.

    Attributes:
        data: The training set: a .csv, .tsv, .jsonl or .parquet file.
        out: The folder for the trained model.
        force: Write into the folder even if it holds something.
        valid: A file of rows to measure on, with the same columns.
        valid_fraction: Share of the training set to leave out and measure on, drawn by the seed.
        weights: Column of the rows' weights in the training loss.
    """

    data: File = field(metadata=_PLACE)
    out: Folder
    force: bool = False
    valid: File | None = None
    valid_fraction: float | None = None
    weights: Column | None = None


@dataclass
class Predict:
    """Classify the texts of a file or of standard input.

    Attributes:
        model: The trained model: a folder, a hub repository owner/name, or the folder of an adapter.
        data: A .csv, .tsv, .jsonl, .parquet or .txt file; none, or -, is standard input.
        out: A .csv, .tsv or .jsonl file, or - to print in the format of the input; without it, JSON lines are printed.
        format: The input's format, if the suffix does not say it; standard input has lines, each of them a text.
        skip_missing: Leave the answer to a missing text empty, instead of ending with an error. An empty cell is text.
        probabilities: Add a column for each class.
        reject_below: Leave the answer empty if its confidence is less.
        window: Rows to read ahead and compute together; 1 answers each row at once.
    """

    model: Name = field(metadata=_PLACE)
    data: File | None = field(default=None, metadata=_PLACE)
    out: File | None = None
    format: str | None = field(default=None, metadata={"choices": ("lines", "jsonl", "csv", "tsv")})
    skip_missing: bool = False
    probabilities: bool = False
    reject_below: float | None = None
    window: int = 2048


@dataclass
class Evaluate:
    """Measure a classifier on a file of labelled texts.

    Attributes:
        model: The trained model: a folder, a hub repository owner/name, or the folder of an adapter.
        data: The labelled texts: a .csv, .tsv, .jsonl or .parquet file.
        html: Also write the report as a page.
        json: Print the measures, their intervals, those of each class, and the confusion matrix as JSON.
    """

    model: Name = field(metadata=_PLACE)
    data: File = field(metadata=_PLACE)
    html: File | None = None
    json: bool = False


@dataclass
class Explain:
    """Show which words decided.

    Attributes:
        model: The trained model: a folder, a hub repository owner/name, or the folder of an adapter.
        texts: The texts to explain.
        file: A file of texts to explain instead.
        target: The class to explain; without it, the one that is answered.
        method: How to attribute the answer to words.
        html: Write the explanations as a page, instead of printing them.
        json: Print the explanations as JSON lines.
    """

    model: Name = field(metadata=_PLACE)
    texts: str | None = field(default=None, metadata=_PLACES)
    file: File | None = None
    target: str | None = None
    method: str = field(default="integrated_gradients", metadata={"choices": ("integrated_gradients", "leave_one_out")})
    html: File | None = None
    json: bool = False


@dataclass
class Summary:
    """Say what a model is.

    Attributes:
        model: The model: a folder, a file, a hub repository owner/name, or a name such as gpt2.
        base: The base of an adapter, instead of the one that it names.
    """

    model: Name = field(metadata=_PLACE)
    base: Name | None = None


@dataclass
class Convert:
    """Rewrite a model for the book's code, transformers, PEFT or ONNX Runtime.

    Attributes:
        source: A folder of transformers, OpenAI, PEFT or gptclf, a .pth file of the book's, or a name such as gpt2.
        target: A .pth file for the book's code, an .onnx file, or a folder for gptclf, transformers and PEFT.
        force: Write into the target even if it holds something.
        merge: Merge LoRA factors into their matrices, which gives a whole model instead of an adapter.
        base: The base of an adapter, instead of the one that it names.
        labels: The labels of a .pth file's classifier, with commas.
        pad_to: The length of the rows that a .pth file's classifier was trained on.
        n_heads: The number of attention heads, if a .pth file has another width than the published models.
    """

    source: Name = field(metadata=_PLACE)
    target: File = field(metadata=_PLACE)
    force: bool = False
    merge: bool = False
    base: Name | None = None
    labels: str | None = None
    pad_to: int | None = None
    n_heads: int | None = None


@dataclass
class Serve:
    """Serve a classifier as a local page and as JSON.

    Attributes:
        model: The trained model: a folder, a hub repository owner/name, or the folder of an adapter.
        host: The address to listen at; 0.0.0.0 is all networks of this machine.
        port: The port to listen at; 0 takes any that is free.
        allowed_hosts: The host names to answer to, with commas; without it, those of this machine.
        name: What the model is called in answers; without it, the folder's name.
        precision: Arithmetic of matrix products.
        max_texts: The most texts in a request.
        max_characters: The most characters in a text.
        max_waiting: The most texts of all requests that may wait; those beyond get status 503.
    """

    model: Name = field(metadata=_PLACE)
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: str | None = None
    name: Name | None = None
    precision: str = field(default="float32", metadata={"choices": ("float32", "bfloat16")})
    max_texts: int = 1000
    max_characters: int = 100_000
    max_waiting: int = 10_000


@dataclass
class Texts:
    """The columns of a file.

    Attributes:
        text: Column of the texts.
        header: Whether the first row names the columns; if not, their names are 0, 1, ...
        delimiter: The character between two columns. Without it, the one by which the first row has the columns.
        quoted: Whether a double quote quotes a field; without it, in .csv but not in .tsv.
        encoding: The text encoding.
    """

    text: Column = Column("text")
    header: bool = True
    delimiter: str | None = None
    quoted: bool | None = None
    encoding: str = "utf-8-sig"


@dataclass
class LabelledTexts:
    """The columns of a file with labels.

    Attributes:
        label: Column of the labels.
        drop_missing: Leave out rows without a text or a label, instead of ending with an error. An empty cell is text,
            but not a label.
    """

    label: Column = Column("label")
    drop_missing: bool = False


@dataclass
class Start:
    """The model to start from, and what of it trains.

    Attributes:
        model: gpt2, gpt2-medium, gpt2-large, gpt2-xl, nano (comes with gptclf; give it --lr 1e-3), a hub repository,
            a folder or a file.
        device: Where to compute, such as cuda; without it, on the CPU.
        trainable: head, last_block, last_two_blocks, a number of blocks, all, or names and patterns with commas.
            Without it, the last block, or the LoRA factors if there are some.
        pooling: Where the head looks: last (the last token), first, mean or max.
        lora_rank: Train LoRA factors of this rank; the folder is then an adapter.
        lora_alpha: Scale of the factors: alpha / rank.
    """

    model: Name = Name("gpt2")
    device: Name | None = None
    trainable: str | None = None
    pooling: str = "last"
    lora_rank: int | None = None
    lora_alpha: float = 16.0


@dataclass
class Task:
    """The task.

    Attributes:
        class_weight: balanced, or weights in the loss such as spam=3,ham=1.
        label_smoothing: Share of each target that is spread evenly over all classes.
        calibrate: Fit the temperature of the probabilities to the validation set after training.
        scoring: Also fit thresholds, to maximise this measure.
    """

    class_weight: Weights | None = None
    label_smoothing: float = 0.0
    calibrate: bool = False
    scoring: str | None = field(default=None, metadata={"choices": ("f1_macro", "accuracy", "balanced_accuracy")})


@dataclass
class Running:
    """The run.

    Attributes:
        early_stopping: Stop after this many measurements without improvement, and keep the best weights.
        keep_best: Keep the weights of the best measurement.
        measure: What is best: the measure to compare.
        checkpoint_dir: Folder for the states of the run.
        checkpoint_every: Steps between two states; without it, one after each epoch.
        resume: Resume from the newest state, if there is one.
        cache_dir: Folder to keep the features of the frozen part in, for later runs.
        recompute: Take a third more work and much less memory, if many blocks train.
    """

    early_stopping: int | None = None
    keep_best: bool = False
    measure: str = field(default="loss", metadata={"choices": ("loss", "accuracy")})
    checkpoint_dir: Folder | None = None
    checkpoint_every: int | None = None
    resume: bool = False
    cache_dir: Folder | None = None
    recompute: bool = False


@dataclass
class Loading:
    """The model.

    Attributes:
        base: The base of an adapter, instead of the one that it names.
        device: Where to compute, such as cuda; without it, on the CPU.
    """

    base: Name | None = None
    device: Name | None = None


@dataclass
class Answers:
    """The answers.

    Attributes:
        precision: Arithmetic of matrix products.
        temperature: The temperature of the probabilities, instead of the model's.
        thresholds: How probable a class must be to be answered, instead of the model's, such as spam=0.9.
    """

    precision: str = field(default="auto", metadata={"choices": PRECISIONS})
    temperature: float | None = None
    thresholds: Weights | None = None


@dataclass
class Common:
    """What every command takes.

    Attributes:
        config: A TOML file of settings, by the names of these flags; flags win.
        quiet: Show no progress; warnings and errors remain.
        debug: Show the traceback of an error, as the variable GPTCLF_DEBUG=1 does.
    """

    config: File | None = None
    quiet: bool = False
    debug: bool = False
