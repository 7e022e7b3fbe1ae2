"""The language-model measurements of `benchmark.py`: writing text, and opening OpenAI's checkpoints."""

import shutil
import time

import torch
from contests import Bench

from gptclf import generate_ids, load_gpt2, load_gpt2_params_from_tf_ckpt, save_model


def bench_generate(b: Bench) -> None:
    """Time tokens after a prompt of 8, greedy, float32: with the cache, without it, and transformers' generate."""
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(b.folder).eval()
    # Their loop would stop at the end of the text; all should write equally many tokens.
    theirs.generation_config.eos_token_id = None
    steps = 20 if b.tiny else 200
    prompt = torch.randint(b.gpt2.config.vocab_size - 1, (1, 8), generator=torch.Generator().manual_seed(0))
    written: dict[str, torch.Tensor] = {}

    def ours(use_cache: bool) -> float:
        start = time.perf_counter()
        written["cache" if use_cache else "no cache"] = generate_ids(b.gpt2, prompt, steps, use_cache=use_cache)
        return time.perf_counter() - start

    def their_generate() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            written["theirs"] = theirs.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                min_new_tokens=steps,
                max_new_tokens=steps,
                pad_token_id=0,
            )
        return time.perf_counter() - start

    contenders = {
        f"gptclf: generate {steps} tokens": lambda: ours(True),
        f"transformers: generate {steps} tokens": their_generate,
    }
    b.take_turns(contenders)
    b.take_turns({f"gptclf: generate {steps} tokens without the cache": lambda: ours(False)}, rounds=1)
    b.notes["greedy tokens: ours equal without the cache, and transformers'"] = [
        torch.equal(written["cache"], written[key]) for key in ("no cache", "theirs")
    ]


def bench_round_trip(b: Bench) -> None:
    """Compare logits and bits of random weights of `--sizes` through a folder into transformers and back."""
    from transformers import GPT2LMHeadModel

    ids = torch.randint(50257, (2, 24), generator=torch.Generator().manual_seed(0))
    for size in b.sizes:
        there, back = b.folder / f"{size} there", b.folder / f"{size} back"
        ours = load_gpt2(size, weights="random", seed=0, tokenizer=b.gpt2.tokenizer)
        with torch.inference_mode():
            expected = ours(ids)
            start = time.perf_counter()
            save_model(ours, there)
            b.seconds.setdefault(f"{size}: save_model", []).append(time.perf_counter() - start)
            theirs = GPT2LMHeadModel.from_pretrained(there, dtype=torch.float32).eval()
            found = theirs(ids).logits
        theirs.save_pretrained(back)
        del theirs
        again = load_gpt2(back)
        pairs = zip(ours.parameters(), again.parameters(), strict=True)
        b.notes[f"{size}: largest difference of logits, largest logit, bits equal after the way there and back"] = [
            float((found - expected).abs().max()),
            float(expected.abs().max()),
            all(torch.equal(x, y) for x, y in pairs),
        ]
        shutil.rmtree(there)
        shutil.rmtree(back)


def bench_checkpoint(b: Bench) -> None:
    """Time opening OpenAI's layout with and without checksums, from the page cache (`--checkpoint FOLDER`)."""
    folder = b.checkpoint
    if folder is None:
        print("  skipped: give --checkpoint, a folder with OpenAI's files")
        return

    def opened(verify: bool) -> float:
        start = time.perf_counter()
        load_gpt2_params_from_tf_ckpt(folder, verify=verify)
        return time.perf_counter() - start

    b.take_turns(
        {
            "TensorFlow checkpoint, every checksum verified": lambda: opened(True),
            "TensorFlow checkpoint, verify=False": lambda: opened(False),
        }
    )
