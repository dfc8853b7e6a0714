"""`qlora doctor`: looks at everything that a daemon and its jobs need, and says what to do about what is wrong."""
