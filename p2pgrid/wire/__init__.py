"""What peers say to each other: typed messages, MessagePack frames, signatures. No I/O."""
