"""Before a job trains: the memory and the time that it will take, from its model's config and its rows' lengths."""
