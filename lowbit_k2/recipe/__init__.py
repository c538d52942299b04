"""The shared verbs and flags of the recipes' scripts and prepare stages; the top layer of the library."""
