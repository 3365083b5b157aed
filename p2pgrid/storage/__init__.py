"""What a node keeps on disk: content-addressed blobs, models by name, its identity."""
