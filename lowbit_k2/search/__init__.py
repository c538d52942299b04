"""Architecture search by PipeGumbel (arXiv 2206.11643): how wide each layer is, on one set of shared weights."""
