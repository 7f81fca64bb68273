"""The paper's numbers and recipes, once."""
