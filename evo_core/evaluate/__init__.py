"""Evaluation on held-out text: `holdout.holdout` for a model, `ngram.ngram_baselines` for what it has to beat."""
