"""The pictures of the terminal in the documentation, drawn from a home that is the same each time."""
