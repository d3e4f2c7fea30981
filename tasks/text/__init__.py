"""Sources of text, tokenizers, vocabularies, and streams of ids."""
