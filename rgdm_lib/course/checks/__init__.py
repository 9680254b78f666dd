"""Checks of the exercises, one module a notebook: ``nb02.py`` holds those of notebook 02."""
