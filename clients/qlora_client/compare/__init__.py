"""`qlora compare`: what differs between jobs, and what came of it."""
