"""`generate` and `generate_ids`: continue a text with a language model."""

from collections.abc import Callable

import torch
from torch import Tensor

from gptclf.checks import boolean, integer
from gptclf.gpt2.arithmetic import evaluating
from gptclf.gpt2.model import GPT2, check_language_model
from gptclf.language.decoding import Decoder
from gptclf.language.logits import has_standard_parts, rows_of_ids
from gptclf.language.sampling import Sampler
from gptclf.metrics.finite import check_finite
from gptclf.tokenizer.tokens import Ids, encode, token_ids_to_text

# Tokens for which room is allocated at first.
_ROOM = 4096


def generate(
    gpt2: GPT2,
    prompt: str,
    max_new_tokens: int = 50,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_at_end_of_text: bool = True,
    special_tokens: bool = False,
    use_cache: bool = True,
) -> str:
    """Continue a prompt, and return the prompt and its continuation as one text.

    Beyond the context length, each token is computed from the last `context_length` tokens alone. Learned positions
    then shift with every token, so cached keys no longer apply and each token costs a whole window.

    Args:
        gpt2: A language model, as `load_gpt2` returns it.
        prompt: The beginning. An empty prompt means one `<|endoftext|>`, after which a model may begin any text.
        max_new_tokens: The most tokens to add.
        temperature: 0 takes the most probable token each time; otherwise logits are divided by it and a token is
            drawn.
        top_k: Draw from the k most probable tokens; None draws from all.
        top_p: Then draw from the fewest most probable tokens whose probabilities add up to p (nucleus sampling).
        seed: The draws depend on it alone. None draws from torch's global generator, which `torch.manual_seed` seeds:
            the tokens are then those of the book's `generate` (section 5.3).
        stop_at_end_of_text: Stop if the model ends the text. Otherwise `<|endoftext|>` is written out and the model
            begins another text.
        special_tokens: Encode `<|endoftext|>` in the prompt as that token rather than as ordinary characters.
        use_cache: Keep the keys and values of earlier tokens, which is faster. False is for comparison.

    Returns:
        The prompt, unchanged, and the continuation. If that stops within a character, it ends with U+FFFD.

    Raises:
        TypeError: The model is a classifier, or a setting has a wrong type.
        ValueError: A setting is out of range.

    Example:
        >>> from gptclf import load_gpt2
        >>> text = generate(load_gpt2("nano"), "Every effort moves you", 8, temperature=0.8, top_k=20, seed=123)
        >>> text.startswith("Every effort moves you")
        True
    """
    check_language_model(gpt2)
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is a {type(prompt).__name__}; it must be a str (generate_ids takes token ids)")
    tokenizer = gpt2.tokenizer
    end: int = tokenizer.eot_token
    ends = boolean("stop_at_end_of_text", stop_at_end_of_text)
    ids = encode(prompt, tokenizer, special_tokens=special_tokens) or [end]
    sampler, end_id = Sampler(temperature, top_k, top_p, seed), end if ends else None
    longer = _continued(gpt2, ids, max_new_tokens, sampler, end_id, tokenizer.n_vocab, use_cache)
    added: list[int] = longer[0, len(ids) :].tolist()
    if ends and added and added[-1] == end:
        added.pop()
    return prompt + token_ids_to_text(added, tokenizer)


def generate_ids(
    gpt2: GPT2,
    ids: Ids,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    end_id: int | None = None,
    n_vocab: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue rows of token ids; no tokenizer is needed.

    Args:
        gpt2: A language model.
        ids: Token ids (B, T) of rows of equal length, or (T,) for one row.
        max_new_tokens: The most tokens to add to each row.
        temperature: As in `generate`, like every argument not described here.
        top_k: As in `generate`.
        top_p: As in `generate`.
        seed: As in `generate`. A row's draws also depend on the rows before it.
        end_id: A row that reaches this token is finished and filled up with it. Generation stops once all rows are
            finished. None: no token ends a row.
        n_vocab: Add only ids below this number: the tokenizer's size, if the model's vocabulary is padded beyond it.
        use_cache: As in `generate`.

    Returns:
        Ids (B, T + added), int64, on the model's device.

    Example:
        >>> from gptclf import GPT2, GPT2Config
        >>> gpt2 = GPT2(GPT2Config(vocab_size=50, context_length=8, emb_dim=8, n_heads=2, n_layers=2), seed=0)
        >>> generate_ids(gpt2, [[1, 2, 3], [4, 5, 6]], 4).shape
        torch.Size([2, 7])
    """
    check_language_model(gpt2)
    return _continued(gpt2, ids, max_new_tokens, Sampler(temperature, top_k, top_p, seed), end_id, n_vocab, use_cache)


def _continued(
    gpt2: GPT2, ids: Ids, n: int, sampler: Sampler, end_id: int | None, n_vocab: int | None, use_cache: bool
) -> Tensor:
    """Check all but the sampler, and return rows and their continuations of up to `n` tokens."""
    n, use_cache = integer("max_new_tokens", n), boolean("use_cache", use_cache)
    size = gpt2.config.vocab_size
    allowed = size if n_vocab is None else min(size, integer("n_vocab", n_vocab, 1))
    end_id = integer("end_id", end_id, optional=True)
    if end_id is not None and end_id >= allowed:
        raise ValueError(f"end_id is {end_id}, but only ids below {allowed} are added; no row could ever end")
    rows = rows_of_ids(gpt2, ids)
    B, end = rows.shape
    if not end:
        raise ValueError("ids holds no tokens; begin with at least one, such as the end of text")
    # Grown as needed: asking for a million tokens mostly means "until the text ends".
    grown = torch.cat([rows, rows.new_empty(B, min(n, _ROOM))], dim=1)
    done = torch.zeros(B, dtype=torch.bool, device=rows.device)
    last = end + n
    with evaluating(gpt2) as model, torch.autocast(gpt2.device.type, enabled=False):
        next_logits = _next_logits(model, B, end, n, use_cache)
        while B and end < last and not bool(done.all()):
            logits = next_logits(grown[:, :end])
            check_finite(logits, model)
            if end == grown.shape[1]:
                grown = torch.cat([grown, torch.empty_like(grown)], dim=1)
            grown[:, end] = chosen = sampler.choose(logits[:, :allowed])
            if end_id is not None:
                grown[done, end] = end_id
                done |= chosen == end_id
            end += 1
    return grown[:, :end].clone()  # outside inference mode


def _next_logits(gpt2: GPT2, B: int, T: int, n: int, use_cache: bool) -> Callable[[Tensor], Tensor]:
    """Return a function from all ids so far (B, T or more) to the logits (B, V) of the next of `n` tokens."""
    context, standard, decoder = gpt2.config.context_length, has_standard_parts(gpt2), None
    if use_cache and standard and context > T:
        capacity = min(T + n, context)
        decoder = Decoder(gpt2, B, capacity, capacity - T)

    def compute(ids: Tensor) -> Tensor:
        if decoder is not None and ids.shape[1] <= context:
            return decoder.advance(ids[:, decoder.length :])
        window = ids[:, -context:]
        if standard:
            return gpt2.head.project(gpt2.hidden_states(window)[:, -1])
        return gpt2(window)[:, -1]  # type: ignore[no-any-return]

    return compute
