"""What is computed: the cascade language, its IR, and the facts that follow from a cascade alone.

In reading order:
    values       expression, ir; a library file of theirs: cascades/one_pass.casc
    text         tokens, cursor, parse, format, library; what is wrong with it: errors, validate (kinds, dataflow, ranges), lint
    rewrites     lets, resolve, sizes; fragments, masks and heads: compose (splice); biases as one contraction: concatenate
    facts        counts (formula, domain, points: inequality, lattice, digits), passes (relations), footprint, dot
    judges       evaluate: NumPy, fp64; definitions: what each `computes` means
"""
