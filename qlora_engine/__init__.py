"""The engine: what a job is (`job`) and how it is trained (`training`)."""

__version__ = "0.1.0"
