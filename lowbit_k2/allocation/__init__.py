"""Which tensor gets how many bits: what each costs a model (sensitivity.py), and the best choice (choose.py).

For any model of the toolkit; the result is a `quant.Allocation`. admm.py brings a float model to one.
"""
