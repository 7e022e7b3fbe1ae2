"""A server of your own on this machine: a page to try a classifier on, and JSON for programs.

    python examples/serving.py                             # trains nano on generated messages first, a few seconds
    python examples/serving.py spam-model                  # a folder that save_model wrote, or a hub repository
    python examples/serving.py spam-model --ask "hello"    # ask once, as a program would, and end

Open the address that it prints: type a text, see how probable each class is and which words said so.
"""

import argparse
import threading
import time

import requests
import torch
import uvicorn
from messages import make_messages

from gptclf import GPT2, TextDataset, add_classifier_head, load_gpt2, load_model, train
from gptclf.serving import create_app


def small_classifier() -> GPT2:
    """Train nano on generated messages."""
    torch.set_num_threads(1)  # threads on tensors as small as nano's mostly wait for each other
    clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=123)
    data = TextDataset(*make_messages(400), tokenizer=clf.tokenizer, classes=clf.classes, max_length=120)
    train(clf, data, epochs=3, batch_size=16, lr=2e-3, schedule="cosine", seed=123)
    return clf


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", help="a folder or a hub repository; a small model is trained if not given")
parser.add_argument("--port", type=int, default=8000)
parser.add_argument("--ask", help="a text to ask about over HTTP; the server then ends")
args = parser.parse_args()

clf = load_model(args.model) if args.model else small_classifier()
# `gptclf.serving.serve(clf)` does what follows in one line; this is how the application goes into any ASGI server.
server = uvicorn.Server(uvicorn.Config(create_app(clf, name="spam"), port=args.port, log_level="warning"))
thread = threading.Thread(target=server.run)
thread.start()
while not server.started:
    time.sleep(0.05)
home = f"http://127.0.0.1:{args.port}"
print(f"the page: {home} (Ctrl-C ends)")

texts = [args.ask] if args.ask else ["You won! Text PRIZE to 81144", "running late, order me a coffee?"]
for answer in requests.post(f"{home}/classify", json={"input": texts}, timeout=10).json()["data"]:
    print(f"{answer['label']} ({100 * max(answer['probs']):.0f} %): {texts[answer['index']]}")
try:
    thread.join(0 if args.ask else None)
except KeyboardInterrupt:
    print("ending")
server.should_exit = True
thread.join()
