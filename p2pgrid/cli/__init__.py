"""The command line: one module a command. They parse, call, and print; they decide nothing else."""
