"""The released code's dialect in the kit: its stages and the bugs that a port of it may have."""
