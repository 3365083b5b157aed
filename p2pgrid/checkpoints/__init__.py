"""Checkpoint files: what is in them (manifest, tokenizer) and a span's weights out of them."""
