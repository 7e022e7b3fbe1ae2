"""A model as a line of stages: embed -> blocks.0 -> ... -> blocks.L-1 -> norm -> head.

`frozen_depth` says where the line can be cut into a frozen prefix and a trainable rest.
"""

from torch import nn

from gptclf.gpt2.model import GPT2


def stages(model: GPT2) -> list[tuple[str, nn.Module]]:
    """The model's stages in the order of computation, named; each takes what the one before it gives.

    Example:
        >>> from gptclf import load_gpt2
        >>> [name for name, _ in stages(load_gpt2("nano"))]
        ['embed', 'blocks.0', 'blocks.1', 'blocks.2', 'blocks.3', 'norm', 'head']
    """
    trunk = model.trunk
    blocks = [(f"blocks.{i}", block) for i, block in enumerate(trunk.blocks)]
    return [("embed", trunk.embed), *blocks, ("norm", trunk.norm), ("head", model.head)]


def frozen_depth(model: GPT2) -> int:
    """How many stages, from the first, hold no trainable parameter.

    The number of stages when nothing trains. A language model's tied matrix counts as the embedding's.
    """
    trains = [any(parameter.requires_grad for parameter in stage.parameters()) for _, stage in stages(model)]
    return [*trains, True].index(True)
