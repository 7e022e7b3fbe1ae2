"""Groups of flags that commands share, a class each, whose docstring is the help.

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
