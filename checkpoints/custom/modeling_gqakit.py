"""Placeholder: the modeling file for gqakit models is not written yet."""

raise NotImplementedError("modeling_gqakit.py is a placeholder; evaluate this model with gqa-eval")
