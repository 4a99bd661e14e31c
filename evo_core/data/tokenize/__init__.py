"""Tokenizers, training one, and tokenizing files on many cores."""
