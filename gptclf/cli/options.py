"""What each command takes: a class per command, whose docstring is the help.

Nothing here imports numpy or torch, so that help and errors of usage are immediate.
"""

from dataclasses import dataclass, field

from gptclf.cli.groups import Column, File, Folder, Name

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
        max_bytes: The most bytes in a request.
        max_waiting: The most texts of all requests that may wait; those beyond get status 503.
        timeout_graceful_shutdown: Seconds for which requests may be finished when the server is told to end.
    """

    model: Name = field(metadata=_PLACE)
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: str | None = None
    name: Name | None = None
    precision: str = field(default="float32", metadata={"choices": ("float32", "bfloat16")})
    max_texts: int = 1000
    max_characters: int = 100_000
    max_bytes: int = 8_000_000
    max_waiting: int = 10_000
    timeout_graceful_shutdown: int = 25
