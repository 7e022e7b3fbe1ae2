"""Which numbers are not finite, and whose fault it is."""

import torch
from torch import Tensor, nn


def check_finite(computed: Tensor, model: nn.Module, what: str = "logits") -> None:
    """Raise if a model computed numbers that are not finite, naming the parameters at fault."""
    if not bool(torch.isfinite(computed).all()):
        raise FloatingPointError(f"the {what} are not finite. {blame(model)}")


def blame(model: nn.Module) -> str:
    """Say which parameters hold NaN or infinity."""
    bad = [name for name, parameter in model.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if not bad:
        return "All weights are finite: the computation overflowed; try precision='float32' or a lower lr"
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"There is NaN or infinity in {', '.join(bad[:3])}{more}: load the weights again"
