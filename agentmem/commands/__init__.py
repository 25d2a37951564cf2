"""The command line's groups of administration; `cli` has the rest."""
