"""Scores of text models beyond the training task: last words, likelihoods for lm-eval, losses by who attended."""
