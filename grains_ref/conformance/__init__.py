"""The conformance kit: which stage of a port diverges first, how far, and which known bug reproduces its output."""
