"""The recipe of the bundled base model `tiny`: corpus, tokenizer and training."""
