"""Computing a stage: graphs built from the checkpoint, KV slabs, the executor, the tokenizer."""
