"""The client: submit, watch and cancel jobs, from the shell or from Python."""
