"""The command line: commands parse, ask `lifld` over its control socket, and print."""
