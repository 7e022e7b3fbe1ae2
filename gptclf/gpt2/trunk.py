"""The trunk: embedding, blocks and final norm, from token ids to hidden states."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.gradients import Embedding as Table
from gptclf.gpt2.gradients import Linear, product

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


# Where a module keeps its hooks.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Embedding(nn.Module):
    """Token ids (B, T) to the residual stream (B, T, D): token embedding plus learned position embedding."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.token = Table(config.vocab_size, config.emb_dim, device="meta")
        self.position = Table(config.context_length, config.emb_dim, device="meta")
        self.dropout = nn.Dropout(config.drop_rate)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed ids (B, T) as (B, T, D)."""
        _check_ids(input_ids, self.token.num_embeddings, self.position.num_embeddings)
        x = self.token(input_ids) + self.position(torch.arange(input_ids.shape[1], device=input_ids.device))
        return self.dropout(x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal scaled-dot-product self-attention over (B, T, D), query, key and value in one projection."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.drop_rate = config.drop_rate
        self.scale = (config.emb_dim // config.n_heads) ** -0.5 if config.scale_attention else 1.0
        if config.scale_attention_by_layer:
            self.scale /= layer + 1
        self.qkv = Linear(config.emb_dim, 3 * config.emb_dim, bias=config.qkv_bias, device="meta")
        self.out = Linear(config.emb_dim, config.emb_dim, device="meta")
        self.dropout = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor, rows: list[int] | None = None) -> Tensor:
        """Mix causally; shapes as in `Block.forward`. Padding needs no mask: no token looks to its right."""
        qkv = self.qkv(x)
        if rows is None:
            return self.dropout(self.out(self.mix(qkv)))  # type: ignore[no-any-return]
        mixed = torch.cat([self.mix(row[None])[0] for row in torch.split(qkv, rows)])
        return self.dropout(self.out(mixed))  # type: ignore[no-any-return]

    def mix(self, qkv: Tensor) -> Tensor:
        """Causal attention over (B, T, 3 D): each position's values averaged to (B, T, D)."""
        B, T, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        if qkv.device.type == "cpu" and qkv.requires_grad:
            # On a CPU the backward pass of the fused kernel is ten times slower in bfloat16 than in float32.
            qkv = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
        q, k, v = qkv.view(B, T, 3, self.n_heads, D // self.n_heads).permute(2, 0, 3, 1, 4)
        with torch.autocast(qkv.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(
                q, k, v, dropout_p=self.drop_rate if self.training else 0.0, is_causal=True, scale=self.scale
            )
        return mixed.transpose(1, 2).reshape(B, T, D)

    def at(self, x: Tensor, gain: Tensor, shift: Tensor, position: Tensor) -> Tensor:
        """What `forward` gives at one position of each row, (B, D), without a key or value for every token.

        With x_j the normalised input, not yet scaled, a score is q · (W_k (x_j g + β) + b_k); what does not depend on j
        drops out of the softmax, which leaves (W_kᵀ q) g · x_j. And Σ a_j (W_v (x_j g + β) + b_v) is
        W_v (g Σ a_j x_j + β) + b_v, because the a_j add up to 1.

        Args:
            x: Normalised input (B, T, D) before gain and shift.
            gain: The norm's weight (D,).
            shift: The norm's bias (D,).
            position: One position in each row (B,); what stands right of it does not matter.
        """
        B, T, D = x.shape
        H, weight = self.n_heads, self.qkv.weight
        q_bias, _, v_bias = (None, None, None) if self.qkv.bias is None else torch.split(self.qkv.bias, D)
        here = x[torch.arange(B, device=x.device), position] * gain + shift
        q = product(here, weight, lambda w: w[:D].t(), q_bias)
        q = q.view(B, H, D // H).transpose(0, 1)
        keys = product(q, weight, lambda w: w[D : 2 * D].view(H, D // H, D))  # (H, B, D)
        with torch.autocast(x.device.type, enabled=False):
            keys = keys.transpose(0, 1).to(x.dtype) * gain
            scores = torch.bmm(keys, x.mT) * self.scale  # (B, H, T)
            later = torch.arange(T, device=x.device) > position[:, None]
            shares = scores.masked_fill(later[:, None], float("-inf")).softmax(dim=-1)
            mean = torch.bmm(shares, x) * gain + shift  # (B, H, D)
        v = product(mean.transpose(0, 1), weight, lambda w: w[2 * D :].view(H, D // H, D).mT)  # (H, B, d_h)
        v = v.transpose(0, 1).reshape(B, D)
        return self.out(v if v_bias is None else v + v_bias)  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The position-wise network of a block: up to the hidden width, activation, down again."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.up = Linear(config.emb_dim, config.hidden_dim, device="meta")
        self.activation = config.activation
        self.down = Linear(config.hidden_dim, config.emb_dim, device="meta")
        self.dropout = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.dropout(self.down(ACTIVATIONS[self.activation](self.up(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-norm transformer block (Radford et al., 2019): attention, then MLP, each added to its input."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.emb_dim, eps=config.norm_eps, device="meta")
        self.attention = Attention(config, layer)
        self.norm2 = nn.LayerNorm(config.emb_dim, eps=config.norm_eps, device="meta")
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rows: list[int] | None = None) -> Tensor:
        """Advance the residual stream. It stays float32 under autocast: x is never cast.

        Args:
            x: (B, T, D), or with `rows` the tokens of rows of those lengths, one row after the other (N, D).
            rows: Lengths that add up to N.
        """
        x = x + self.attention(self.norm1(x), rows)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def at(self, x: Tensor, position: Tensor) -> Tensor:
        """What `forward` gives at one position of each row: (B, T, D) and positions (B,) to (B, D).

        The work is that of one token, and 2 H D for each other. Only for blocks that `can_pool` accepts.
        """
        norm = self.norm1
        normalised = F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
        here = x[torch.arange(len(x), device=x.device), position]
        x = here + self.attention.at(normalised, norm.weight, norm.bias, position)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    @property
    def can_pool(self) -> bool:
        """Whether `at` holds: it draws no dropout, and calls neither the block nor its first parts as modules."""
        parts: tuple[nn.Module, ...] = (self, self.norm1, self.attention, self.attention.qkv)
        usual = (type(self), *map(type, parts[1:])) == (Block, nn.LayerNorm, Attention, Linear)
        draws = self.training and max(self.attention.drop_rate, self.attention.dropout.p) > 0
        scales = self.norm1.weight is not None and self.norm1.bias is not None
        return usual and scales and not draws and not any(map(is_watched, parts))


def is_own(block: nn.Module) -> bool:
    """Whether a block and all in it are of these kinds and nobody looks inside: how it is computed is free then."""
    parts = list(block.modules())
    kinds = {Block, Attention, MLP, nn.LayerNorm, Linear, nn.Dropout}
    return type(block) is Block and {type(part) for part in parts} <= kinds and not any(map(is_watched, parts))


def is_watched(module: nn.Module) -> bool:
    """Whether hooks stand on a module, or its forward was replaced, so that it must be called as it is."""
    return "forward" in vars(module) or any(getattr(module, name) for name in HOOKS)


class Trunk(nn.Module):
    """Embedding, blocks and final norm: token ids (B, T) to normalised hidden states (B, T, D)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.embed = Embedding(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.emb_dim, eps=config.norm_eps, device="meta")

    def forward(self, input_ids: Tensor) -> Tensor:
        """Hidden states (B, T, D) of ids (B, T), after the final norm."""
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]


def _check_ids(input_ids: Tensor, vocab_size: int, context_length: int) -> None:
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point():
        kind = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise TypeError(f"input_ids is {kind}; it must be a tensor of integer token ids")
    if input_ids.dim() != 2 or input_ids.shape[1] < 1:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; it must be (batch, tokens), tokens at least 1")
    if input_ids.shape[1] > context_length:
        raise ValueError(
            f"a row has {input_ids.shape[1]} tokens but the model's context length is {context_length}; "
            "truncate the texts (max_length=) or the ids"
        )
    # On a GPU this check would wait for the device at every batch; data sets made here are checked at the source.
    if input_ids.device.type == "cpu" and input_ids.numel():
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"token ids run from {low} to {high} but the vocabulary has ids 0 to {vocab_size - 1}; "
                "the tokenizer does not belong to this model"
            )
