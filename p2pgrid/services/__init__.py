"""Long-running parts of a node, one task tree each. None knows another; `node.wiring` joins them."""
