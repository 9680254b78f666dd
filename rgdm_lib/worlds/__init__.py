"""Worlds with a known answer: toy data, mixtures whose payoff distribution is exact, distances."""
