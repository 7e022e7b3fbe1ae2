"""`export_onnx`: writes a model as an ONNX graph, which runs without torch and without gptclf."""

import json
import logging
from errno import EISDIR
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from gptclf import checks
from gptclf.files.atomic import write_all
from gptclf.gpt2.arithmetic import check_float32
from gptclf.gpt2.model import GPT2, check_gpt2
from gptclf.gpt2.sharing import twin
from gptclf.version import __version__

logger = logging.getLogger(__name__)


def export_onnx(model: GPT2, path: str | Path, *, external_data: bool = False) -> Path:
    """Write a model as one ONNX file, for ONNX Runtime and other tools; needs `pip install 'gptclf[onnx]'`.

    The graph takes `input_ids` (batch, tokens) and `lengths` (batch,), both int64 and of any size up to the model's
    context, and gives `logits`: (batch, outputs) of a classifier, (batch, tokens, vocabulary) of a language model. They
    are divided by the task's temperature, if it has one, so that their softmax gives the probabilities of
    `predict_proba`; thresholds are only in the metadata. The graph does not check its inputs: each length must be from
    1 to tokens. Its metadata holds `task`, `classes` and `preparation` as JSON, and `gptclf_version`. LoRA factors and
    quantised matrices are exported as they are.

    Args:
        model: A classifier or a language model, float32.
        path: The file to write, such as "model.onnx". It is replaced only once the new one is complete.
        external_data: Write the weights to a file of their own, `<path>.data`, which then belongs to the model. A model
            of more than 2 GB, the most that one ONNX file holds, is always written in this way.

    Returns:
        The path.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: The model is not float32, its labels cannot be written as JSON, or a part of your own cannot be
            recorded, because what it does depends on the values of tensors.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=1)
        >>> export_onnx(clf, "spam.onnx").name
        'spam.onnx'
    """
    check_gpt2(model)
    check_float32(model, "export_onnx writes")
    checks.boolean("external_data", external_data)
    if getattr(model.task, "thresholds", None):
        logger.warning("an ONNX graph gives logits: apply the thresholds in its metadata yourself")
    target = checks.path("path", path)
    if target.is_dir():
        raise IsADirectoryError(EISDIR, f"path is {target}, a folder; give a file, such as {target / 'model.onnx'}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as stage:
        _recorded(model).save(Path(stage, target.name), external_data=external_data)
        # The weights first, if they are in a file of their own: the graph names that file.
        files = sorted(Path(stage).iterdir(), key=lambda file: file.name == target.name)
        write_all(target.parent, {file.name: file.replace for file in files})
    return target


class _Answering(nn.Module):
    """A model whose outputs are at its task's temperature."""

    def __init__(self, model: GPT2) -> None:
        super().__init__()
        self.model, self.temperature = model, getattr(model.task, "temperature", 1.0)
        self.eval()

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        outputs: Tensor = self.model(input_ids, lengths)
        return outputs if self.temperature == 1.0 else outputs / self.temperature


def _recorded(model: GPT2) -> Any:
    """Return torch's `ONNXProgram` of a model."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("export_onnx needs onnx and onnxscript: pip install 'gptclf[onnx]'") from error
    ids = torch.zeros(2, 3, dtype=torch.int64, device=model.device)
    Dim = torch.export.Dim
    sizes = {0: Dim("batch"), 1: Dim("tokens", max=model.config.context_length)}
    try:
        with torch.no_grad():
            program: Any = torch.onnx.export(
                _Answering(twin(model).eval()),
                (ids, torch.tensor([3, 2], device=model.device)),
                input_names=["input_ids", "lengths"],
                output_names=["logits"],
                dynamic_shapes=(sizes, {0: Dim.AUTO}),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        remedy = "what a head or block of your own does must not depend on the values of tensors"
        raise ValueError(f"the model cannot be recorded as a graph ({reason}); {remedy}") from error
    graph = program.model.graph
    graph.inputs[1].shape[0] = graph.inputs[0].shape[0]  # torch does not name an axis that no operator uses
    for part in (graph, *graph, *graph.inputs, *(value for node in graph for value in node.outputs)):
        part.metadata_props.clear()  # torch notes the lines of code, with the paths of this machine
    task = model.task.record()
    values = {"task": task, "classes": task.get("classes"), "preparation": vars(model.preparation)}
    texts = {name: json.dumps(value) for name, value in values.items()}
    program.model.metadata_props.update(texts, gptclf_version=__version__)
    return program
