"""What a training step is: a model, its losses, and what a batch holds. One object per setting.

    SourceStep        UC, labelled source only: predictor, alignment, expert balance
    AdaptationStep    DA, and an unlabelled target: pseudo-labels for the predictor
    DistillationStep  the adapter of implicit knowledge, towards the explicit model; no labels at all

What the method is compared with stands in ``kcdp.training.baselines``, one step each.
"""
