"""Why this answer? The words that moved it, and the messages of the training set that it was decided like.

    python examples/explanations.py                  # generated messages, half a minute
    python examples/explanations.py mails.csv        # a file with the columns text and label

Open runs/explanations/page.html: every test message that the classifier got wrong, with its words coloured.
"""

import sys
from pathlib import Path

import torch
from sources import texts_from

from gptclf import TextDataset, add_classifier_head, evaluate, explain, load_gpt2, nearest, predict, split, train

OUT = Path("runs/explanations")
OUT.mkdir(parents=True, exist_ok=True)

torch.set_num_threads(1)  # threads on tensors as small as nano's mostly wait for each other
texts, labels = texts_from(sys.argv[1] if sys.argv[1:] else None, n=1200)
clf = add_classifier_head(load_gpt2("nano"), classes=sorted(set(labels)), pooling="mean", seed=123)
data = TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes, max_length=120)
train_set, test_set = split(data, (0.8, 0.2), seed=123)
train(clf, train_set, epochs=4, batch_size=16, lr=1e-3, schedule="cosine", seed=123)
print(f"test: {evaluate(clf, test_set)}")

# One message in detail. The attributions of its words add up to the change of the output from an empty message.
[found] = explain(clf, test_set.texts[:1])
print(f"\n{found.text}\n{found.target}, probability {found.probability:.2f}. The words that moved it most:")
words = sorted(zip(found.word_attributions, found.words, strict=True), key=lambda pair: -abs(pair[0]))
for attribution, word in words[:5]:
    print(f"  {attribution:+.2f}  {word}")
print(f"picture: {found.plot(OUT / 'words.png')}")

[neighbours] = nearest(clf, test_set.texts[:1], train_set, k=3)
print(f"decided like these:\n{neighbours.to_frame().to_string()}")

answers = predict(clf, test_set.texts)
wrong = [i for i, answer in enumerate(answers) if answer != test_set.given[i]]
page = explain(clf, [test_set.texts[i] for i in wrong])._repr_html_()
(OUT / "page.html").write_text(f"<!doctype html><meta charset=utf-8><h1>{len(wrong)} wrong answers</h1>{page}")
print(f"the {len(wrong)} wrong answers: {OUT / 'page.html'}")
