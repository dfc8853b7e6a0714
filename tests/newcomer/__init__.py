"""A newcomer's first ten minutes, typed at a shell in a pseudo-terminal."""
