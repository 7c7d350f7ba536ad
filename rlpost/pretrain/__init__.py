"""The recipe of the bundled base model `tiny`: its corpus, its tokenizer and its training."""
