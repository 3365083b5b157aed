"""The network behind one port: real (libp2p) or in memory; and the link that services speak over."""
