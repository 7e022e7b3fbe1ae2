"""`generate`: a language model goes on with a text."""

import torch
from torch import Tensor

from gptclf.gpt2.arithmetic import answering
from gptclf.gpt2.model import GPT2
from gptclf.language.checks import check_language_model, is_plain, rows_of_ids
from gptclf.language.decoding import Decoder
from gptclf.language.sampling import Sampler, whole
from gptclf.metrics import check_finite
from gptclf.tokenizer.tokens import Ids, encode, token_ids_to_text

# Tokens that there is room for at first.
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
    """The prompt and what the model goes on with, as one text.

    Past the model's context length it goes on from the last `context_length` tokens. Learned positions then shift by
    one with every token and no kept key fits any more, so from there on each token costs a whole window.

    Args:
        gpt2: A language model, as `load_gpt2` returns it.
        prompt: The beginning. An empty one is one `<|endoftext|>`, after which a model begins any text.
        max_new_tokens: At most so many tokens are added.
        temperature: 0 takes the most probable token each time; otherwise one is drawn, from logits divided by it.
        top_k: Draw from the k most probable tokens; None: from all.
        top_p: Then from the fewest most probable tokens whose probabilities add up to p (nucleus sampling).
        seed: What is drawn follows from it alone. None takes a seed from torch's global generator.
        stop_at_end_of_text: Stop where the model ends the text. Otherwise `<|endoftext|>` is written out and the model
            goes on with another text.
        special_tokens: Let `<|endoftext|>` in the prompt be that token rather than ordinary characters.
        use_cache: Keep keys and values of earlier tokens, which is faster; False is for comparison.

    Returns:
        The prompt, unchanged, and the continuation; where that stops within a character, U+FFFD stands for it.

    Raises:
        TypeError: For a classifier, or a setting of a wrong type.
        ValueError: For a setting out of its range.

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
    ids = encode(prompt, tokenizer, special_tokens=special_tokens) or [end]
    longer = generate_ids(
        gpt2,
        ids,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        end_id=end if stop_at_end_of_text else None,
        n_vocab=tokenizer.n_vocab,
        use_cache=use_cache,
    )
    added: list[int] = longer[0, len(ids) :].tolist()
    if stop_at_end_of_text and added and added[-1] == end:
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
    """Token ids and what the model goes on with, row by row; no tokenizer is needed.

    Args:
        gpt2: A language model.
        ids: Token ids (B, T) of rows of one length, or (T,) for one row.
        max_new_tokens: At most so many tokens are added to each row.
        temperature: As in `generate`, like the rest that is not described here.
        top_k: As in `generate`.
        top_p: As in `generate`.
        seed: As in `generate`. A row's draws follow from all rows before it, too.
        end_id: A row that comes to this token is done and filled up with it; when all are done, no more is added.
            None: none ends.
        n_vocab: Add only ids below this, the tokenizer's number, where the model's vocabulary is padded beyond it.
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
    max_new_tokens = whole("max_new_tokens", max_new_tokens, 0)
    sampler = Sampler(temperature, top_k, top_p, seed)
    size = gpt2.config.vocab_size
    n_vocab = size if n_vocab is None else whole("n_vocab", n_vocab, 1)
    end_id = None if end_id is None else whole("end_id", end_id, 0)
    if end_id is not None and end_id >= min(size, n_vocab):
        raise ValueError(f"end_id is {end_id} but only ids below {min(size, n_vocab)} are added; no row could ever end")
    rows = rows_of_ids(gpt2, ids)
    B, T = rows.shape
    if not T:
        raise ValueError("ids holds no tokens; begin with at least one, such as the end of text")
    context = gpt2.config.context_length
    capacity = min(T + max_new_tokens, context)
    # Grown as it is needed: who asks for a million tokens mostly means "until the text ends".
    grown = torch.empty(B, T + min(max_new_tokens, _ROOM), dtype=torch.int64, device=gpt2.device)
    grown[:, :T] = rows
    done = torch.zeros(B, dtype=torch.bool, device=gpt2.device)
    end = T
    plain = is_plain(gpt2)
    with answering(gpt2), torch.autocast(gpt2.device.type, enabled=False):
        decoder = Decoder(gpt2, B, capacity, capacity - T) if use_cache and plain and context > T else None
        while end < T + max_new_tokens and B:
            if decoder is not None and end <= context:
                logits = decoder.advance(grown[:, decoder.length : end])
            else:
                window = grown[:, max(0, end - context) : end]
                # A model that is watched, or is another's, is called as it is.
                logits = gpt2.head(gpt2.trunk(window)[:, -1]) if plain else gpt2(window)[:, -1]
            check_finite(logits, gpt2)
            if n_vocab < size:
                logits = logits[:, :n_vocab]
            if end == grown.shape[1]:
                grown = torch.cat([grown, torch.empty_like(grown)], dim=1)
            grown[:, end] = chosen = sampler.choose(logits)
            if end_id is not None:
                grown[done, end] = end_id
                done |= chosen == end_id
            end += 1
            if end_id is not None and bool(done.all()):
                break
    return grown[:, :end].clone()
