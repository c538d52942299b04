"""What a program imports to train, load, decode, evaluate and export recognisers; flags are read elsewhere."""
