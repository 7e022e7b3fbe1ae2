"""One table: accuracy, seconds, rate and memory of text classifiers on this machine, each method in its own process.

    pip install "gptclf[benchmark]" && python examples/accuracy_table.py --data FOLDER      # about a quarter of an hour
    python examples/accuracy_table.py --data FOLDER --sets sms --methods tfidf "gptclf head"

FOLDER holds sms_spam.tsv, banking77_train.csv and banking77_test.csv (`sources.py` finds them). With a connection,
`--sets ag_news emotion` fetches two more from the Hugging Face hub through `datasets`. SMS Spam is split 70/10/20 by
class after repeated texts were left out; the others have a test set, and a tenth of their training rows validates.
Every method tries two settings, is scored on the validation set, and trains once more with the better one: that
training is timed. The interval is Wilson's for 95 %. `--methods all` also runs what has to be downloaded: pretrained
GPT-2, SetFit and potion.
"""

import argparse
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from isolated import AnonymousMemory
from sources import Texts, read_banking77, read_sms

Answer = Callable[[Sequence[str]], Sequence[Any]]
SEED = 123
FETCHED = {"ag_news": "fancyzhx/ag_news", "emotion": "dair-ai/emotion"}  # names on the Hugging Face hub
Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


class Parts(NamedTuple):
    """The three parts of a data set, each as texts and labels."""

    train: Texts
    validation: Texts
    test: Texts


def read(name: str, folder: Path) -> Parts:
    """Return a data set's parts, the same at every call."""
    if name == "sms":
        rows = list(dict(zip(*read_sms(folder / "sms_spam.tsv"), strict=True)).items())
        spam, ham = ([row for row in rows if row[1] == label] for label in ("spam", "ham"))
        train, validation, test = [], [], []
        for some in (spam, ham):
            random.Random(SEED).shuffle(some)
            first, second = round(0.7 * len(some)), round(0.8 * len(some))
            train += some[:first]
            validation += some[first:second]
            test += some[second:]
        return Parts(*(_columns(part) for part in (train, validation, test)))
    if name == "banking77":
        rest, known = read_banking77(folder)
    else:
        from datasets import load_dataset

        found: Any = load_dataset(FETCHED[name])
        names = found["train"].features["label"].names
        rest, known = (
            (list(found[part]["text"]), [names[i] for i in found[part]["label"]]) for part in ("train", "test")
        )
    rows = list(zip(*rest, strict=True))
    random.Random(SEED).shuffle(rows)
    tenth = len(rows) // 10
    return Parts(_columns(rows[tenth:]), _columns(rows[:tenth]), known)


def _columns(rows: Sequence[tuple[str, Any]]) -> Texts:
    return [text for text, _ in rows], [label for _, label in rows]


def tfidf(train: Texts, setting: float, name: str) -> Answer:
    """TF-IDF of words and pairs of words with logistic regression; the setting is C."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(vectors, LogisticRegression(C=setting, max_iter=1000)).fit(*train)
    return lambda texts: model.predict(texts).tolist()


def fasttext(train: Texts, setting: float, name: str) -> Answer:
    """Give fastText words and pairs of words; the setting is the learning rate."""
    import re

    import fasttext as library

    def line(text: str) -> str:
        return re.sub(r"([^\w\s])", r" \1 ", text.lower()).replace("\n", " ")

    classes = sorted(set(train[1]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "train.txt")
        lines = (f"__label__{classes.index(c)} {line(t)}" for t, c in zip(*train, strict=True))
        file.write_text("\n".join(lines), encoding="utf-8")
        model = library.train_supervised(str(file), lr=setting, epoch=25, wordNgrams=2, thread=2, verbose=0)
    number = len("__label__")
    return lambda texts: [classes[int(found[0][number:])] for found in model.predict([line(t) for t in texts])[0]]


def spacy(train: Texts, setting: float, name: str) -> Answer:
    """Train spaCy's textcat with its default architecture for ten epochs; the setting is the dropout."""
    import spacy as library
    from spacy.training import Example

    pipeline = library.blank("en")
    textcat: Any = pipeline.add_pipe("textcat")
    classes = sorted(set(train[1]))
    for label in classes:
        textcat.add_label(label)
    library.util.fix_random_seed(SEED)
    truths = [{"cats": {c: float(c == label) for c in classes}} for label in train[1]]
    examples = [Example.from_dict(pipeline.make_doc(t), c) for t, c in zip(train[0], truths, strict=True)]
    optimizer = pipeline.initialize(lambda: examples)
    for _ in range(10):
        random.shuffle(examples)
        for batch in library.util.minibatch(examples, size=32):
            pipeline.update(batch, sgd=optimizer, drop=setting)
    return lambda texts: [max(doc.cats, key=doc.cats.__getitem__) for doc in pipeline.pipe(texts)]


EPOCHS, BATCH = 5, 32
SCHEDULE: dict[str, Any] = {
    "epochs": EPOCHS,
    "batch_size": BATCH,
    "schedule": "linear",
    "warmup_steps": 50,
    "clip": 1.0,
}


def gptclf(train: Texts, setting: float, name: str) -> Answer:
    """Fine-tune nano, or pretrained GPT-2, with gptclf; the setting is the learning rate."""
    import gptclf as library

    policy = name.split()[-1]
    gpt2 = library.load_gpt2("gpt2" if "GPT-2" in name else "nano")
    clf = library.add_classifier_head(gpt2, classes=sorted(set(train[1])), seed=SEED)
    if policy == "LoRA":
        clf = library.apply_lora(clf, rank=16, seed=SEED)
    else:
        library.freeze(clf, trainable=policy)
    rows = library.TextDataset(*train, tokenizer=clf.tokenizer, classes=clf.classes)
    library.clear_features()  # an earlier setting's training must not make this one faster
    options = {**SCHEDULE, "epochs": EPOCHS, "batch_size": BATCH, "eval_batches": 1, "progress": False}
    library.train(clf, rows, lr=setting, seed=SEED, **options)
    return lambda texts: library.predict(clf, texts)


def trainer(train: Texts, setting: float, name: str) -> Answer:
    """Fine-tune all of nano with `transformers`, grouped by length and with fused AdamW; the setting is the rate."""
    import torch
    from transformers import (
        DataCollatorWithPadding,
        GPT2ForSequenceClassification,
        PreTrainedTokenizerFast,
        Trainer,
        TrainingArguments,
    )

    import gptclf as library

    classes = sorted(set(train[1]))
    with tempfile.TemporaryDirectory() as folder:
        clf = library.add_classifier_head(library.load_gpt2("nano"), classes=classes, bias=False, seed=SEED)
        library.save_model(clf, folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        model = GPT2ForSequenceClassification.from_pretrained(folder)
        rows = [{**tokenizer(t, truncation=True), "labels": classes.index(c)} for t, c in zip(*train, strict=True)]
        options = TrainingArguments(
            folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=setting,
            weight_decay=0.1,
            warmup_steps=50,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=SEED,
        )
        Trainer(model=model, args=options, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)).train()
    model.eval()

    def answer(texts: Sequence[str]) -> list[Any]:
        found = []
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH):
                batch = tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
                found += [classes[i] for i in model(**batch).logits.argmax(-1).tolist()]
        return found

    return answer


def setfit(train: Texts, setting: float, name: str) -> Answer:
    """Train SetFit on MiniLM; the setting is the number of epochs over the pairs."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained("sentence-transformers/all-MiniLM-L6-v2", labels=sorted(set(train[1])))
    rows = Dataset.from_dict({"text": train[0], "label": train[1]})
    options = TrainingArguments(num_epochs=int(setting), num_iterations=1, seed=SEED)
    Trainer(model=model, args=options, train_dataset=rows).train()
    return lambda texts: list(model.predict(list(texts)))


def potion(train: Texts, setting: float, name: str) -> Answer:
    """Embed with potion's static vectors, then logistic regression; the setting is C."""
    from model2vec import StaticModel
    from sklearn.linear_model import LogisticRegression

    vectors = StaticModel.from_pretrained("minishlab/potion-base-8M")
    model = LogisticRegression(C=setting, max_iter=1000).fit(vectors.encode(train[0]), train[1])
    return lambda texts: model.predict(vectors.encode(list(texts))).tolist()


# Each method's function and its two settings.
METHODS: dict[str, tuple[Callable[[Texts, float, str], Answer], tuple[float, float]]] = {
    "tfidf": (tfidf, (1.0, 10.0)),
    "fastText": (fasttext, (0.1, 0.5)),
    "spaCy textcat": (spacy, (0.1, 0.3)),
    "Trainer, nano, all": (trainer, (5e-4, 2e-3)),
    "gptclf head": (gptclf, (1e-2, 3e-2)),
    "gptclf last_block": (gptclf, (1e-3, 3e-3)),
    "gptclf all": (gptclf, (5e-4, 2e-3)),
    "gptclf LoRA": (gptclf, (2e-3, 5e-3)),
}
DOWNLOADED: dict[str, tuple[Callable[[Texts, float, str], Answer], tuple[float, float]]] = {
    "gptclf GPT-2 124M last_block": (gptclf, (5e-5, 2e-4)),
    "SetFit, MiniLM": (setfit, (1.0, 2.0)),
    "potion, logistic regression": (potion, (1.0, 10.0)),
}


def measure(name: str, parts: Parts) -> dict[str, float]:
    """Choose the setting, train with it, and measure."""
    method, settings = (METHODS | DOWNLOADED)[name]
    watch = AnonymousMemory()

    def hits(answer: Answer, part: Texts) -> int:
        return sum(a == b for a, b in zip(answer(part[0]), part[1], strict=True))

    validated = {setting: hits(method(parts.train, setting, name), parts.validation) for setting in settings}
    best = max(settings, key=lambda setting: (validated[setting], -setting))
    start = time.perf_counter()
    answer = method(parts.train, best, name)
    trained = time.perf_counter()
    right = hits(answer, parts.test)
    asked = (parts.test[0] * math.ceil(2000 / len(parts.test[0])))[:2000]
    ready = time.perf_counter()
    answer(asked)
    rate = len(asked) / (time.perf_counter() - ready)
    return {
        "setting": best,
        "right": right,
        "n": len(parts.test[0]),
        "train": trained - start,
        "rate": rate,
        "MB": watch.peak / 1e6,
    }


def wilson(right: int, n: int) -> tuple[float, float, float]:
    """Return a share and the ends of its 95 % interval (Wilson, 1927), in percent."""
    share = right / n
    middle, half = share + Z**2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return 100 * share, 100 * (middle - half) / (1 + Z**2 / n), 100 * (middle + half) / (1 + Z**2 / n)


def processor() -> str:
    """Name the processor and whether it has matrix units."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    units = "with AMX" if any("amx_tile" in line for line in lines) else "without AMX"
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {units}"


def main() -> None:
    """Run each method in a process of its own and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument(
        "--sets", nargs="+", default=["sms", "banking77"], choices=["sms", "banking77", "ag_news", "emotion"]
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=[*METHODS, *DOWNLOADED, "all"])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.methods[0], read(args.sets[0], args.data))))
        return
    print(f"{processor()}; Python {platform.python_version()}\n")
    for data in args.sets:
        parts = read(data, args.data)
        sizes = " / ".join(f"{len(part[0]):,}" for part in parts)
        print(f"{data}: {sizes} texts to train, validate, test; {len(set(parts.train[1]))} classes\n")
        print("| method | setting | test accuracy | 95 % interval | training | texts/s | memory |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name in [*METHODS, *DOWNLOADED] if "all" in args.methods else args.methods:
            command = [sys.executable, "-W", "ignore", __file__, "--here", "--data", str(args.data)]
            done = subprocess.run([*command, "--sets", data, "--methods", name], capture_output=True, text=True)
            if done.returncode:
                print(f"| {name} | | | | | | | <!-- {(done.stderr.strip().splitlines() or ['?'])[-1]} -->", flush=True)
                continue
            found = json.loads(done.stdout.strip().splitlines()[-1])
            share, low, high = wilson(found["right"], found["n"])
            cells = [f"{found['setting']:g}", f"{share:.1f} %", f"{low:.1f} to {high:.1f}", f"{found['train']:.1f} s"]
            print(f"| {' | '.join([name, *cells])} | {found['rate']:,.0f} | {found['MB']:,.0f} MB |", flush=True)
        print()


if __name__ == "__main__":
    main()
