"""The names in the book's scripts and what takes their place here, for the errors of those who use them."""

# Functions and classes.
FUNCTIONS = {
    "GPTModel": "load_gpt2(BASE_CONFIG, weights='random')",
    "download_and_load_gpt2": "load_gpt2('gpt2'), or download_openai_checkpoint(size, folder)",
    "load_weights_into_gpt": "load_gpt2(params=params, settings=settings)",
    "GPTDatasetV1": "TextWindows(text, tokenizer=, length=, stride=)",
    "create_dataloader_v1": "TextWindows(text, tokenizer=, length=, stride=) and Batches(windows, batch_size, seed)",
    "generate_text_simple": "generate_ids(model, idx, max_new_tokens)",
    "generate_and_print_sample": "generate(model, text), in a Callback",
    "SpamDataset": "TextDataset.from_table(frame, text=, label=, tokenizer=), or from_csv",
    "calc_loss_batch": "batch_loss(model, batch)",
    "calc_loss_loader": "dataset_loss(clf, data, num_batches=), or perplexity(gpt2, text)",
    "calc_accuracy_loader": "dataset_accuracy(clf, data, num_batches=)",
    "evaluate_model": "train(..., eval_every=, eval_batches=)",
    "train_classifier_simple": "train(clf, train_set, val_set, epochs=, lr=)",
    "train_model_simple": "train_lm(gpt2, train_windows, val_windows, epochs=, lr=)",
    "train_model": "train_lm(...) or train(...) with warmup_steps=, schedule= and clip=",
    "plot_values": "History.plot(path), of what train returns",
    "plot_losses": "History.plot(path), of what train returns",
    "classify_review": "predict(clf, [text])[0]",
}

# Parts of a model; also those of `transformers`.
PARTS = {
    "trf_blocks": "trunk.blocks",
    "final_norm": "trunk.norm",
    "tok_emb": "trunk.embed.token",
    "pos_emb": "trunk.embed.position",
    "drop_emb": "trunk.embed.dropout",
    "out_head": "head",
    "transformer": "trunk",
    "lm_head": "head",
}

# Arguments of the training functions; also those that other libraries use.
OPTIONS = {
    "num_epochs": "give epochs=",
    "eval_freq": "give eval_every=",
    "eval_iter": "give eval_batches=",
    "num_batches": "give eval_batches=",
    "accumulation_steps": "give accumulate=",
    "initial_lr": "give warmup_steps= alone; the learning rate rises from 0",
    "peak_lr": "give lr=",
    "max_lr": "give lr=",
    "learning_rate": "give lr=",
    "min_lr": "give schedule='cosine'; the learning rate falls to 0",
    "optimizer": "the run makes its own AdamW from lr= and weight_decay=",
    "device": "the run uses the model's: model.to(device)",
    "shuffle": "rows are always shuffled, by seed=",
    "tokenizer": "the data set has it",
    "train_loader": "give train_set, a data set; batches are made of it by batch_size= and seed=",
    "val_loader": "give val_set, a data set; batches are made of it by batch_size=",
    "max_length": "the data set has it: TextDataset(..., max_length=)",
    "start_context": "call generate in a callback",
    "max_steps": "call run.stop() in a callback",
    "patience": "give callbacks=[EarlyStopping(patience)]",
    "trainable": "call freeze(model, trainable=) first",
    "dropout": "the model has it: load_gpt2(..., dropout=)",
    "drop_rate": "the model has it: load_gpt2(..., dropout=)",
    "trainable_token_pos": "give add_classifier_head pooling=, and the data sets pad_to= for the last pad",
    "average_embeddings": "give add_classifier_head pooling='mean'",
}

# What the training functions return.
CURVES = {
    "train_losses": "train_loss",
    "val_losses": "val_loss",
    "train_accs": "train_accuracy",
    "val_accs": "val_accuracy",
    "examples_seen": "examples",
    "track_tokens_seen": "examples",
}
