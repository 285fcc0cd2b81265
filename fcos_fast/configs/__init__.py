"""Recipes: configurations of `fcos-fast train --config NAME`."""
