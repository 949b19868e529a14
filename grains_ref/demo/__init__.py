"""Demonstrations on the embedded tiny models: `text`, `vision`, what they share (`bench`), what they print (`show`)."""
