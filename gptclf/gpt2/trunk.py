"""The trunk: embedding, blocks and final norm, from token ids to hidden states."""

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.gpt2.arithmetic import ACTIVATIONS
from gptclf.gpt2.attend import Attend, causal
from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.layers import Dropout, Embedding, Linear, acts
from gptclf.gpt2.recording import is_recording
from gptclf.gpt2.sharing import refuse_borrowed_gradients
from gptclf.gpt2.standard import is_standard


class TokenPositions(nn.Module):
    """Map token ids (B, T) to the residual stream (B, T, D): token embedding plus learned position embedding."""

    standard = True
    kind = "token_positions"

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.token = Embedding(config.vocab_size, config.emb_dim, device="meta")
        self.position = Embedding(config.context_length, config.emb_dim, device="meta")
        self.dropout = Dropout(config.drop_rate)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed ids (B, T) as (B, T, D)."""
        _check_ids(input_ids, self.token.num_embeddings, self.position.num_embeddings)
        x = self.token(input_ids) + self.position(torch.arange(input_ids.shape[1], device=input_ids.device))
        return self.dropout(x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Scaled-dot-product self-attention over (B, T, D), query, key and value in one projection."""

    standard = True
    kind = "attention"
    described: tuple[str, ...] = ("n_heads", "scale")

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.scale = (config.emb_dim // config.n_heads) ** -0.5 if config.scale_attention else 1.0
        if config.scale_attention_by_layer:
            self.scale /= layer + 1
        self.qkv = Linear(config.emb_dim, 3 * config.emb_dim, bias=config.qkv_bias, device="meta")
        self.weights_dropout = Dropout(config.drop_rate)
        self.out = Linear(config.emb_dim, config.emb_dim, device="meta")
        self.dropout = Dropout(config.drop_rate)

    def forward(self, x: Tensor, attend: Attend = causal) -> Tensor:
        """Map (B, T, D) to (B, T, D), mixing positions as `attend` does."""
        return self.dropout(self.out(self.mix(self.qkv(x), attend)))  # type: ignore[no-any-return]

    def mix(self, qkv: Tensor, attend: Attend = causal) -> Tensor:
        """Average each position's values: (B, T, 3 D) to (B, T, D)."""
        B, T, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        if qkv.device.type == "cpu" and qkv.requires_grad:
            # On a CPU the backward pass of the fused kernel is ten times slower in bfloat16 than in float32.
            qkv = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
        q, k, v = qkv.view(B, T, 3, self.n_heads, D // self.n_heads).permute(2, 0, 3, 1, 4)
        with torch.autocast(qkv.device.type, enabled=False):
            mixed = attend(q, k, v, scale=self.scale, dropout=self.weights_dropout)
        return mixed.transpose(1, 2).reshape(B, T, D)

    def at_position(self, x: Tensor, gain: Tensor, shift: Tensor, position: Tensor) -> Tensor:
        """Compute what causal `forward` gives at one position of each row, (B, D), without a key for every token.

        With x_j the normalised input, not yet scaled, a score is q · (W_k (x_j g + β) + b_k). Terms without j drop out
        of the softmax, which leaves (W_kᵀ q) g · x_j. And Σ a_j (W_v (x_j g + β) + b_v) equals
        W_v (g Σ a_j x_j + β) + b_v, because the a_j add up to 1.

        Args:
            x: Normalised input (B, T, D) before gain and shift.
            gain: The norm's weight (D,).
            shift: The norm's bias (D,).
            position: One position in each row (B,); the tokens to its right do not matter.
        """
        B, T, D = x.shape
        here = x[torch.arange(B, device=x.device), position] * gain + shift
        q = self.qkv.rows(here, slice(0, D))
        keys = self.qkv.onto(q, slice(D, 2 * D), heads=self.n_heads).reshape(self.n_heads, B, D)
        with torch.autocast(x.device.type, enabled=False):
            keys = keys.transpose(0, 1).to(x.dtype) * gain
            scores = torch.bmm(keys, x.mT) * self.scale  # (B, H, T)
            later = torch.arange(T, device=x.device) > position[:, None]
            shares = scores.masked_fill(later[:, None], float("-inf")).softmax(dim=-1)
            mean = torch.bmm(shares, x) * gain + shift  # (B, H, D)
        means = mean.transpose(0, 1).squeeze(0)  # (B, D) if there is one head
        values = self.qkv.rows(means, slice(2 * D, 3 * D), heads=self.n_heads)
        return self.out(values)  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The position-wise network of a block: up to the hidden width, activation, down again."""

    standard = True
    kind = "mlp"
    described: tuple[str, ...] = ("activation",)

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.up = Linear(config.emb_dim, config.hidden_dim, device="meta")
        self.activation = config.activation
        self.down = Linear(config.hidden_dim, config.emb_dim, device="meta")
        self.dropout = Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.dropout(self.down(ACTIVATIONS[self.activation](self.up(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-norm transformer block (Radford et al., 2019): attention, then MLP, each added to its input."""

    standard = True
    kind = "block"

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.emb_dim, eps=config.norm_eps, device="meta")
        self.attention = Attention(config, layer)
        self.norm2 = nn.LayerNorm(config.emb_dim, eps=config.norm_eps, device="meta")
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attend: Attend = causal) -> Tensor:
        """Advance the residual stream (B, T, D). It stays float32 under autocast: x is never cast."""
        refuse_borrowed_gradients(self)
        x = x + self.attention(self.norm1(x), attend)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def at_position(self, x: Tensor, position: Tensor) -> Tensor:
        """Compute what causal `forward` gives at one position of each row: (B, T, D) and positions (B,) to (B, D).

        The work is that of one token, plus 2 H D for each other token. Only for blocks that `can_pool`.
        """
        norm = self.norm1
        normalised = F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
        here = x[torch.arange(len(x), device=x.device), position]
        x = here + self.attention.at_position(normalised, norm.weight, norm.bias, position)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Trunk(nn.Module):
    """Embedding, blocks and final norm: token ids (B, T) to normalised hidden states (B, T, D)."""

    standard = True
    kind = "trunk"

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.embed = TokenPositions(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.emb_dim, eps=config.norm_eps, device="meta")

    def forward(self, input_ids: Tensor) -> Tensor:
        """Compute the hidden states (B, T, D) of ids (B, T), after the final norm."""
        refuse_borrowed_gradients(self)
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]


def can_pool(block: nn.Module | None) -> TypeGuard[Block]:
    """Return True if `at_position` applies: a `Block` of standard parts, without randomness in the attention."""
    if not isinstance(block, Block) or not is_standard(block):
        return False
    attention, norm = block.attention, block.norm1
    draws = acts(attention.weights_dropout) or acts(attention.dropout)
    return norm.weight is not None and norm.bias is not None and attention.qkv.folds and not draws


def _check_ids(input_ids: Tensor, vocab_size: int, context_length: int) -> None:
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point():
        kind = getattr(input_ids, "dtype", type(input_ids).__name__)
        raise TypeError(f"input_ids is {kind}; it must be a tensor of integer token ids")
    if input_ids.dim() != 2 or input_ids.shape[1] < 1:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; it must be (batch, tokens), tokens at least 1")
    if (tokens := input_ids.shape[1]) > context_length:
        limit = f"the model's context length is {context_length}"
        raise ValueError(f"a row has {tokens} tokens but {limit}; truncate the texts (max_length=) or the ids")
    # On a GPU this check would wait for the device at every batch; data sets made here are checked at the source.
    if not is_recording() and input_ids.device.type == "cpu" and input_ids.numel():
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= vocab_size:
            known = f"the vocabulary has ids 0 to {vocab_size - 1}"
            raise ValueError(f"token ids run from {low} to {high} but {known}; use the tokenizer of this model")
