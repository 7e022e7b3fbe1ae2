"""A model as a line of stages: embed -> blocks.0 -> ... -> blocks.L-1 -> norm -> head.

`frozen_depth` says where the line can be cut into a frozen prefix and a trainable rest.
"""

from torch import nn

from gptclf.gpt2.model import GPT2, check_gpt2


def stages(model: GPT2) -> list[tuple[str, nn.Module]]:
    """Return the model's named stages in the order of computation; each takes the output of the one before.

    Example:
        >>> from gptclf import load_gpt2
        >>> [name for name, _ in stages(load_gpt2("nano"))]
        ['embed', 'blocks.0', 'blocks.1', 'blocks.2', 'blocks.3', 'norm', 'head']
    """
    trunk = model.trunk
    blocks = [(f"blocks.{i}", block) for i, block in enumerate(trunk.blocks)]
    return [("embed", trunk.embed), *blocks, ("norm", trunk.norm), ("head", model.head)]


def frozen_depth(model: GPT2) -> int:
    """Return the number of stages before the first one with a trainable parameter.

    If nothing trains, that is the number of all stages. A language model's tied matrix counts as the embedding's.
    """
    check_gpt2(model)
    trains = [any(parameter.requires_grad for parameter in stage.parameters()) for _, stage in stages(model)]
    return [*trains, True].index(True)
