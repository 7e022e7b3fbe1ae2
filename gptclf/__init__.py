"""Fine-tune GPT-2 to classify text.

Load the weights, put a classifier head where the vocabulary head was, freeze most blocks, train the rest with
cross-entropy on the last token, measure, predict, save, load.
"""

from gptclf.data.batches import Batch, Batches
from gptclf.data.dataset import TextDataset
from gptclf.data.splits import shared_texts, split
from gptclf.data.windows import TextWindows
from gptclf.features.store import clear_features
from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.stages import freeze, frozen_depth, trainable_report
from gptclf.inference.evaluate import Evaluation, dataset_accuracy, dataset_loss, evaluate
from gptclf.inference.predict import Prediction, predict, predict_proba, predict_stream
from gptclf.language.generate import generate, generate_ids
from gptclf.language.scoring import perplexity, token_log_probs
from gptclf.language.zero_shot import ZeroShot, zero_shot
from gptclf.metrics import batch_loss
from gptclf.tokenizer.tokens import text_to_token_ids, token_ids_to_text
from gptclf.training.callbacks import Callback, KeepBest
from gptclf.training.estimate import Estimate, estimate
from gptclf.training.history import History
from gptclf.training.train import train, train_lm
from gptclf.weights.load_gpt2 import add_classifier_head, load_gpt2
from gptclf.weights.load_model import load_model
from gptclf.weights.openai import load_gpt2_params_from_tf_ckpt
from gptclf.weights.openai_download import download_openai_checkpoint
from gptclf.weights.save_model import save_model

__all__ = [
    "GPT2",
    "Batch",
    "Batches",
    "Callback",
    "Estimate",
    "Evaluation",
    "GPT2Config",
    "History",
    "KeepBest",
    "Prediction",
    "TextDataset",
    "TextWindows",
    "ZeroShot",
    "add_classifier_head",
    "batch_loss",
    "clear_features",
    "dataset_accuracy",
    "dataset_loss",
    "download_openai_checkpoint",
    "estimate",
    "evaluate",
    "freeze",
    "frozen_depth",
    "generate",
    "generate_ids",
    "load_gpt2",
    "load_gpt2_params_from_tf_ckpt",
    "load_model",
    "perplexity",
    "predict",
    "predict_proba",
    "predict_stream",
    "save_model",
    "shared_texts",
    "split",
    "text_to_token_ids",
    "token_ids_to_text",
    "token_log_probs",
    "train",
    "train_lm",
    "trainable_report",
    "zero_shot",
]
