"""A training loop of your own: plain PyTorch over gptclf's batches, and a picture of its losses.

    python examples/own_loop.py                  # generated messages, half a minute
    python examples/own_loop.py mails.csv        # a file with the columns text and label

These are the steps that `train` takes, without the reuse of what is frozen: yours to change.
"""

import sys

import torch
from matplotlib.figure import Figure
from sources import texts_from

from gptclf import Batches, TextDataset, add_classifier_head, batch_loss, evaluate, load_gpt2, save_model, split

EPOCHS, BATCH_SIZE = 3, 16

torch.set_num_threads(1)  # threads on tensors as small as nano's mostly wait for each other
texts, labels = texts_from(sys.argv[1] if sys.argv[1:] else None, n=1200)
clf = add_classifier_head(load_gpt2("nano"), classes=sorted(set(labels)), seed=123)  # its last block will train
data = TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes, max_length=120)
train_set, test_set = split(data, (0.8, 0.2), seed=123)

batches = Batches(train_set, batch_size=BATCH_SIZE, seed=123, task=clf.task)
trainable = [parameter for parameter in clf.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.1)
n_steps = EPOCHS * -(-len(train_set) // BATCH_SIZE)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=n_steps)

losses = []
clf.train()  # dropout, if the model has any
for epoch in range(EPOCHS):
    for batch in batches.epoch(epoch):
        loss = batch_loss(clf, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}: accuracy on the test set {evaluate(clf, test_set).accuracy:.3f}")
clf.eval()
clf.preparation = train_set.preparation  # so that `predict` cuts texts as in training
print(f"model: {save_model(clf, 'runs/own_loop/model')}")

figure = Figure(figsize=(7, 4), layout="constrained")
axes = figure.subplots()
axes.plot(losses, alpha=0.3, label="each step")
window = min(20, n_steps)
means = torch.tensor(losses).unfold(0, window, 1).mean(dim=1)
axes.plot(range(window - 1, n_steps), means, color="C0", label=f"mean of the last {window} steps")
axes.set(xlabel="step", ylabel="loss", title="A loop of your own")
axes.legend()
figure.savefig("runs/own_loop/losses.png")
print("losses: runs/own_loop/losses.png")
