"""Estimators for scikit-learn (`pip install 'gptclf[sklearn]'`)."""

try:
    import sklearn as _  # noqa: F401 - said once, before the modules below need its base classes
except ImportError as error:
    raise ImportError("gptclf.sklearn needs scikit-learn: pip install 'gptclf[sklearn]'", name="sklearn") from error

from gptclf.sklearn.classifier import GPT2Classifier
from gptclf.sklearn.features import GPT2Features
from gptclf.sklearn.zero_shot import ZeroShotGPT2Classifier

__all__ = ["GPT2Classifier", "GPT2Features", "ZeroShotGPT2Classifier"]
