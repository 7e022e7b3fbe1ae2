"""The public names, grouped by purpose. `gptclf` passes them on when the first of them is asked for."""

from gptclf.data.batches import Batch, Batches
from gptclf.data.dataset import TextDataset
from gptclf.data.splits import shared_texts, split
from gptclf.data.windows import TextWindows
from gptclf.explanations.explain import explain
from gptclf.explanations.explanation import Explanation
from gptclf.explanations.nearest import Neighbours, nearest
from gptclf.features.cache import clear_features
from gptclf.gpt2.classifier import add_classifier_head
from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.freezing import freeze, trainable_report
from gptclf.gpt2.heads import ClassifierHead, Head
from gptclf.gpt2.layers import Linear
from gptclf.gpt2.lora import apply_lora, merge_lora
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.quantize import quantize
from gptclf.gpt2.stages import frozen_depth
from gptclf.inference.baseline import tfidf_baseline
from gptclf.inference.calibrate import calibrate
from gptclf.inference.embed import embed
from gptclf.inference.evaluate import dataset_accuracy, dataset_loss, evaluate, evaluate_many
from gptclf.inference.predict import Prediction, predict, predict_logits, predict_proba, predict_stream
from gptclf.inference.predict_many import predict_many, predict_proba_many
from gptclf.language.generate import generate, generate_ids
from gptclf.language.scoring import perplexity, token_log_probs
from gptclf.language.zero_shot import ZeroShot, zero_shot
from gptclf.metrics.probabilities import Reliability, RiskCoverage
from gptclf.preparation import Preparation
from gptclf.results.compare import Comparison, compare
from gptclf.results.errors import ConfidentError, ConfidentErrors
from gptclf.results.evaluation import Evaluation
from gptclf.saving.export_onnx import export_onnx
from gptclf.saving.load_adapter import load_adapter
from gptclf.saving.load_model import load_model
from gptclf.saving.save_adapter import save_adapter
from gptclf.saving.save_model import save_model
from gptclf.tasks import MultiLabel, NextToken, Regression, SingleLabel, Task
from gptclf.tokenizer.tokens import text_to_token_ids, token_ids_to_text
from gptclf.training.callbacks import EarlyStopping, KeepBest
from gptclf.training.estimate import Estimate, estimate
from gptclf.training.history import History, Scores
from gptclf.training.loop import Step
from gptclf.training.objective import batch_loss
from gptclf.training.recipe import Recipe
from gptclf.training.run import Callback, Run
from gptclf.training.train import train, train_lm
from gptclf.version import __version__
from gptclf.weights.load_gpt2 import load_gpt2
from gptclf.weights.openai import load_gpt2_params_from_tf_ckpt
from gptclf.weights.openai_download import download_openai_checkpoint

__all__ = ["GPT2", "GPT2Config", "export_onnx", "load_gpt2", "load_model", "save_model"]
__all__ += ["download_openai_checkpoint", "load_gpt2_params_from_tf_ckpt"]
__all__ += ["ClassifierHead", "Head", "Linear", "add_classifier_head", "freeze", "frozen_depth", "trainable_report"]
__all__ += ["apply_lora", "load_adapter", "merge_lora", "quantize", "save_adapter"]
__all__ += ["MultiLabel", "NextToken", "Regression", "SingleLabel", "Task"]
__all__ += ["Batch", "Batches", "Preparation", "TextDataset", "TextWindows", "shared_texts", "split"]
__all__ += ["Callback", "EarlyStopping", "Estimate", "History", "KeepBest", "Recipe", "Run", "Scores", "Step"]
__all__ += ["batch_loss", "clear_features", "estimate", "train", "train_lm"]
__all__ += ["Comparison", "Evaluation", "Prediction", "calibrate", "compare", "evaluate", "tfidf_baseline"]
__all__ += ["ConfidentError", "ConfidentErrors", "Reliability", "RiskCoverage"]
__all__ += ["Explanation", "Neighbours", "explain", "nearest"]
__all__ += ["embed", "predict", "predict_logits", "predict_proba", "predict_stream"]
__all__ += ["evaluate_many", "predict_many", "predict_proba_many"]
__all__ += ["dataset_accuracy", "dataset_loss"]
__all__ += ["ZeroShot", "generate", "generate_ids", "perplexity", "token_log_probs", "zero_shot"]
__all__ += ["__version__", "text_to_token_ids", "token_ids_to_text"]
