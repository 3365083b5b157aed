"""Computing a stage: graphs for onnxruntime built from the checkpoint, KV slabs, the executor, the tokenizer."""
