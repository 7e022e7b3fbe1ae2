"""The peers that `benchmark.py` compares gptclf with, each as its users run it, on the same weights and rows.

The book's code is the `llms-from-scratch` package (`pip install --no-deps llms-from-scratch`): its `ch04` model and
its `ch06` functions. `transformers` is measured with its Trainer, by default and tuned as an experienced user would;
with its text-classification pipeline; and with an inference loop tuned by hand.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptclf import GPT2

Rows = Sequence[tuple[list[int], int]]


def end_of_text(folder: Path) -> int:
    """Return the id of the padding, from the configuration of a saved model."""
    return int(json.loads((folder / "config.json").read_text())["eos_token_id"])


class Book:
    """The book's model and loop: rows padded to the longest training text, logits for every token, float32."""

    def __init__(self, gpt2: GPT2, *, trainable: str, width: int = 120, batch_size: int = 8) -> None:
        from llms_from_scratch.ch04 import GPTModel

        torch.manual_seed(123)
        c = gpt2.config
        self.model = GPTModel(
            {
                "vocab_size": c.vocab_size,
                "context_length": c.context_length,
                "emb_dim": c.emb_dim,
                "n_heads": c.n_heads,
                "n_layers": c.n_layers,
                "drop_rate": 0.0,
                "qkv_bias": True,
            }
        )
        _fill_book(self.model, gpt2)
        for parameter in self.model.parameters():
            parameter.requires_grad_(trainable == "all")
        self.model.out_head = torch.nn.Linear(c.emb_dim, 2)
        if trainable == "last_block":
            for part in (self.model.trf_blocks[-1], self.model.final_norm):
                part.requires_grad_(True)
        trained = (p for p in self.model.parameters() if p.requires_grad)
        self.optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.1)
        self.width, self.batch_size, self.end = width, batch_size, gpt2.tokenizer.eot_token

    def batch(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return rows as the book's data set makes them."""
        ids = torch.tensor([row[: self.width] + [self.end] * (self.width - len(row)) for row, _ in rows])
        return ids, torch.tensor([label for _, label in rows])

    def step_seconds(self, rows: Rows) -> float:
        """Time one training step of `train_classifier_simple`."""
        from llms_from_scratch.ch06 import calc_loss_batch

        ids, labels = self.batch(rows[: self.batch_size])
        self.model.train()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = calc_loss_batch(ids, labels, self.model, "cpu")
        loss.backward()
        self.optimizer.step()
        return time.perf_counter() - start

    def evaluation_seconds(self, rows: Rows) -> float:
        """Time one batch of an evaluation."""
        from llms_from_scratch.ch06 import calc_loss_batch

        ids, labels = self.batch(rows[: self.batch_size])
        self.model.eval()
        start = time.perf_counter()
        with torch.no_grad():
            calc_loss_batch(ids, labels, self.model, "cpu").item()
        return time.perf_counter() - start


def book_recipe(step: float, evaluation: float, sizes: tuple[int, int, int], epochs: int = 5) -> float:
    """Return the seconds of the whole recipe from those of a step and of an evaluated batch, which all have one shape.

    The loader drops the last short batch. Every 50 steps, from the first, 5 batches each of the training and the
    validation set are measured; as many after each epoch, for the accuracy; and at the end all three sets.
    """
    steps = epochs * (sizes[0] // 8)
    looks = len(range(0, steps, 50)) + epochs
    final = sizes[0] // 8 + sum(-(-size // 8) for size in sizes[1:])
    return steps * step + (looks * 10 + final) * evaluation


def _fill_book(model: Any, gpt2: GPT2) -> None:
    def put(target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    with torch.no_grad():
        put(model.tok_emb.weight, gpt2.trunk.embed.token.weight)
        put(model.pos_emb.weight, gpt2.trunk.embed.position.weight)
        blocks: Any = gpt2.trunk.blocks
        for theirs, ours in zip(model.trf_blocks, blocks, strict=True):
            query, key, value = (getattr(theirs.att, f"W_{name}") for name in ("query", "key", "value"))
            for part, weight, bias in zip(
                (query, key, value), ours.attention.qkv.weight.chunk(3), ours.attention.qkv.bias.chunk(3), strict=True
            ):
                put(part.weight, weight)
                put(part.bias, bias)
            put(theirs.att.out_proj.weight, ours.attention.out.weight)
            put(theirs.att.out_proj.bias, ours.attention.out.bias)
            for mine, name in ((ours.mlp.up, 0), (ours.mlp.down, 2)):
                put(theirs.ff.layers[name].weight, mine.weight)
                put(theirs.ff.layers[name].bias, mine.bias)
            for norm, mine in ((theirs.norm1, ours.norm1), (theirs.norm2, ours.norm2)):
                put(norm.scale, mine.weight)
                put(norm.shift, mine.bias)
        put(model.final_norm.scale, gpt2.trunk.norm.weight)
        put(model.final_norm.shift, gpt2.trunk.norm.bias)


def hugging_face(folder: Path, *, trainable: str) -> Any:
    """Load `GPT2ForSequenceClassification` from a folder, with the book's policy."""
    from transformers import GPT2ForSequenceClassification

    torch.manual_seed(123)
    model = GPT2ForSequenceClassification.from_pretrained(
        folder, num_labels=2, pad_token_id=end_of_text(folder), dtype=torch.float32, attn_implementation="sdpa"
    )
    model.config.use_cache = False
    if trainable == "last_block":
        model.requires_grad_(False)
        for part in (model.transformer.h[-1], model.transformer.ln_f, model.score):
            part.requires_grad_(True)
    return model


def trainer_epoch(folder: Path, rows: Rows, *, trainable: str, tuned: bool, precision: str, steps: int = -1) -> float:
    """Time one epoch of `transformers.Trainer`, or its first `steps` steps, in seconds, from weights already loaded.

    Tuned: bf16 if asked for, rows grouped by length, no reporting, no saving, no evaluation. Padding to the longest row
    of each batch and fused AdamW are defaults.
    """
    trainer = _trainer(folder, hugging_face(folder, trainable=trainable), rows, tuned, precision, max_steps=steps)
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def peft_seconds(
    folder: Path, rows: Rows, *, epochs: int, layers: list[int] | None = None, rank: int = 16, tests: Rows | None = None
) -> float:
    """Time PEFT's LoRA under tuned Trainer in bf16: some epochs and the answers to `tests`, from weights loaded.

    Args:
        folder: The saved GPT-2.
        rows: The training rows.
        epochs: Passes over them.
        layers: The blocks whose four matrices have factors; None means all.
        rank: The rank.
        tests: Rows to answer at the end.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(123)
    some = {} if layers is None else {"layers_to_transform": layers, "layers_pattern": "h"}
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=16,
        target_modules=["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
        fan_in_fan_out=True,
        **some,
    )
    model = get_peft_model(hugging_face(folder, trainable="none"), config)
    trainer = _trainer(folder, model, rows, True, "bfloat16", num_train_epochs=epochs)
    start = time.perf_counter()
    trainer.train()
    if tests is not None:
        trainer.predict(_features(tests))
    return time.perf_counter() - start


def _features(rows: Rows) -> list[dict[str, Any]]:
    return [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label} for ids, label in rows]


def _trainer(folder: Path, model: Any, rows: Rows, tuned: bool, precision: str, **options: Any) -> Any:
    from transformers import DataCollatorWithPadding, GPT2TokenizerFast, Trainer, TrainingArguments

    tokenizer = GPT2TokenizerFast.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    choices: dict[str, Any] = {"num_train_epochs": 1} | options
    if tuned:
        choices |= {
            "bf16": precision == "bfloat16",
            "train_sampling_strategy": "group_by_length",
            "save_strategy": "no",
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "per_device_eval_batch_size": 32,
        }
    return Trainer(
        model=model,
        args=TrainingArguments(
            str(folder / "trainer"),
            per_device_train_batch_size=8,
            learning_rate=5e-5,
            weight_decay=0.1,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=123,
            **choices,
        ),
        train_dataset=_features(rows),
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def tuned_inference(
    folder: Path, rows: Rows, *, precision: str = "bfloat16", batch_size: int = 32
) -> Callable[[], int]:
    """Make a loop over batches sorted by length, in bf16, as an experienced user writes it; call it to run it."""
    model = hugging_face(folder, trainable="none").eval()
    end, dtype = end_of_text(folder), torch.bfloat16 if precision == "bfloat16" else torch.float32
    model.to(dtype)

    def run() -> int:
        order = np.argsort([len(ids) for ids, _ in rows])
        done = 0
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                some = [rows[i][0] for i in order[start : start + batch_size]]
                width = max(map(len, some))
                ids = torch.tensor([row + [end] * (width - len(row)) for row in some])
                mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in some])
                done += len(model(input_ids=ids, attention_mask=mask).logits.argmax(-1))
        return done

    return run


def pipeline_inference(folder: Path, texts: Sequence[str]) -> Callable[[], int]:
    """Make the text-classification pipeline with its defaults; call the result to run it."""
    from transformers import GPT2TokenizerFast, TextClassificationPipeline

    model = hugging_face(folder, trainable="none").eval()
    pipe = TextClassificationPipeline(model=model, tokenizer=GPT2TokenizerFast.from_pretrained(folder), device="cpu")

    def run() -> int:
        return len(pipe(list(texts), truncation=True, max_length=120))

    return run


def tfidf(train: tuple[Sequence[str], Sequence[str]], test: tuple[Sequence[str], Sequence[str]]) -> tuple[float, float]:
    """Measure seconds and test accuracy of TF-IDF with logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    start = time.perf_counter()
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(*train)
    accuracy = float(model.score(*test))
    return time.perf_counter() - start, accuracy
