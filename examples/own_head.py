"""A head of your own: it learns which tokens to look at, and a picture shows at which it looks.

python examples/own_head.py                  # generated messages, half a minute
python examples/own_head.py mails.csv        # a file with the columns text and label
"""

import sys
from typing import Any

import torch
from matplotlib.figure import Figure
from sources import texts_from
from torch import Tensor, nn

import gptclf


class AttentionPooling(gptclf.Head):
    """Average the states of all tokens, each with the weight that a learned query gives it."""

    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__()
        self.query = nn.Linear(emb_dim, 1)
        self.output = nn.Linear(emb_dim, n_outputs)

    def weights(self, hidden: Tensor, lengths: Tensor | None = None) -> Any:
        """Return the weight of each token (B, T); the padding to the right of a row has none."""
        scores = self.query(hidden).squeeze(2)
        if lengths is not None:
            padding = torch.arange(hidden.shape[1], device=hidden.device) >= lengths[:, None]
            scores = scores.masked_fill(padding, -torch.inf)
        return scores.softmax(dim=1)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Any:
        """Map the states (B, T, D) to the outputs (B, n_outputs)."""
        return self.output((self.weights(hidden, lengths)[:, :, None] * hidden).sum(dim=1))


torch.manual_seed(123)
texts, labels = texts_from(sys.argv[1] if sys.argv[1:] else None, n=1200)
clf = gptclf.add_classifier_head(gptclf.load_gpt2("nano"), classes=sorted(set(labels)), head=AttentionPooling)
data = gptclf.TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes, max_length=120)
train_set, test_set = gptclf.split(data, (0.8, 0.2), seed=123)
gptclf.train(clf, train_set, epochs=4, batch_size=16, lr=1e-3, schedule="cosine", seed=123)
print(f"test: {gptclf.evaluate(clf, test_set)}")
clf = gptclf.load_model(gptclf.save_model(clf, "runs/own_head/model"), head=AttentionPooling)

head: Any = clf.head
figure = Figure(figsize=(9, 5), layout="constrained")
for axes, text in zip(figure.subplots(1, 3), test_set.texts[:3], strict=True):
    ids = clf.tokenizer.encode_ordinary(text)
    with torch.inference_mode():
        weights = head.weights(clf.hidden_states(torch.tensor([ids])))[0].numpy()
    axes.barh(range(len(ids)), weights)
    axes.set_yticks(range(len(ids)), [clf.tokenizer.decode([i]) for i in ids], fontsize=7, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="weight", title=gptclf.predict(clf, [text])[0])
figure.savefig("runs/own_head/weights.png")
print("where it looks: runs/own_head/weights.png")
