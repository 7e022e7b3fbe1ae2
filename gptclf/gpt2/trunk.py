"""The trunk: embedding, blocks and final norm, from token ids to hidden states."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.gpt2.config import GPT2Config

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class Embedding(nn.Module):
    """Token ids (B, T) to the residual stream (B, T, D): token embedding plus learned position embedding."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.emb_dim, device="meta")
        self.position = nn.Embedding(config.context_length, config.emb_dim, device="meta")
        self.dropout = nn.Dropout(config.drop_rate)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed ids (B, T) as (B, T, D)."""
        _check_ids(input_ids, self.token.num_embeddings, self.position.num_embeddings)
        x = self.token(input_ids) + self.position.weight[: input_ids.shape[1]]
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
        self.qkv = nn.Linear(config.emb_dim, 3 * config.emb_dim, bias=config.qkv_bias, device="meta")
        self.out = nn.Linear(config.emb_dim, config.emb_dim, device="meta")
        self.dropout = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, T, D) causally. Padding on the right needs no mask: no real token looks to its right."""
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_heads, D // self.n_heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.drop_rate if self.training else 0.0, is_causal=True, scale=self.scale
        )
        return self.dropout(self.out(mixed.transpose(1, 2).reshape(B, T, D)))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The position-wise network of a block: up to the hidden width, activation, down again."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.emb_dim, config.hidden_dim, device="meta")
        self.activation = config.activation
        self.down = nn.Linear(config.hidden_dim, config.emb_dim, device="meta")
        self.dropout = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.dropout(self.down(_ACTIVATIONS[self.activation](self.up(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-norm transformer block (Radford et al., 2019): attention, then MLP, each added to its input."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.emb_dim, eps=config.norm_eps, device="meta")
        self.attention = Attention(config, layer)
        self.norm2 = nn.LayerNorm(config.emb_dim, eps=config.norm_eps, device="meta")
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map the residual stream (B, T, D) to (B, T, D). It stays float32 under autocast: x is never cast."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


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
