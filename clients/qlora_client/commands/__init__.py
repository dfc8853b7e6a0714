"""The commands of `qlora`, by what they are about."""
