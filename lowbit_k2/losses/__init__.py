"""Training losses: CTC, and the objective that trains several precisions in one update."""
