"""The door for programs that speak to OpenAI, and for browsers: HTTP in front of the swarm. Holds no weights."""
