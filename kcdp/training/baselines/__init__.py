"""What the method is compared with, through the same engine: one step each, chosen by ``training.method``.

``kcdp train --profile dann`` sets all that belongs to a baseline; see ``kcdp/profiles``.
"""
