"""Tokenizers: one class and one file of ``conf/data/tokenizer`` each."""
