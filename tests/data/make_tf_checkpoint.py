"""Writes tests/data/tf_gpt2: a very small GPT-2 as TensorFlow itself saves it, in OpenAI's names, shapes and files.

    python tests/data/make_tf_checkpoint.py [folder]      (pip install tensorflow-cpu; written with 2.21)

`whole/` holds one data file and what OpenAI puts beside it, `sharded/` the same tensors in three data files,
`values.npz` the same values as numpy saves them. Eleven blocks, because h10 sorts before h2.
"""

import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HPARAMS = {"n_vocab": 257, "n_ctx": 16, "n_embd": 4, "n_head": 2, "n_layer": 11}


def draw(hparams: dict[str, int], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random values for every variable, under OpenAI's names and in its shapes (openai/gpt-2, model.py)."""
    rng = np.random.default_rng(seed)
    d = hparams["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {"model/wte": (hparams["n_vocab"], d), "model/wpe": (hparams["n_ctx"], d)}
    matrices = {"attn/c_attn": (d, 3 * d), "attn/c_proj": (d, d), "mlp/c_fc": (d, 4 * d), "mlp/c_proj": (4 * d, d)}
    norms = ["model/ln_f"]
    for i in range(hparams["n_layer"]):
        for name, shape in matrices.items():
            shapes |= {f"model/h{i}/{name}/w": (1, *shape), f"model/h{i}/{name}/b": shape[1:]}
        norms += [f"model/h{i}/ln_1", f"model/h{i}/ln_2"]
    shapes |= {f"{norm}/{part}": (d,) for norm in norms for part in "gb"}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def save_whole(tf: Any, values: dict[str, NDArray[Any]], folder: Path) -> None:
    """`checkpoint`, `model.ckpt.index` and `model.ckpt.data-00000-of-00001`, by the Saver that OpenAI used."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables, feed = [], {}
        for name, value in values.items():
            # Fed, because a graph cannot hold constants of more than 2 GB.
            start = tf.compat.v1.placeholder(value.dtype, value.shape)
            variables.append(tf.compat.v1.get_variable(name, initializer=start, use_resource=False))
            feed[start] = value
        session.run([variable.initializer for variable in variables], feed)
        saver = tf.compat.v1.train.Saver(variables, save_relative_paths=True)
        saver.save(session, str(folder / "model.ckpt"), write_meta_graph=False)


def save_sharded(tf: Any, values: dict[str, NDArray[Any]], folder: Path, shards: int) -> None:
    """The same tensors in several data files, as training on several machines leaves them."""
    names = sorted(values)
    parts = [str(folder / f"part-{i}") for i in range(shards)]
    for i, part in enumerate(parts):
        own = names[i::shards]
        tf.raw_ops.SaveV2(
            prefix=part, tensor_names=own, shape_and_slices=[""] * len(own), tensors=[values[name] for name in own]
        )
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(folder / "model.ckpt"))


def main(folder: Path) -> None:
    """Write the three beside each other; what is there already is replaced."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    tf = importlib.import_module("tensorflow")
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("whole", "sharded"):
        (folder / name).mkdir(parents=True)
        (folder / name / "hparams.json").write_text(json.dumps(HPARAMS), encoding="utf-8")
    values = draw(HPARAMS)
    save_whole(tf, values, folder / "whole")
    save_sharded(tf, values, folder / "sharded", 3)
    np.savez_compressed(folder / "values.npz", **dict[str, Any](values))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "tf_gpt2")
