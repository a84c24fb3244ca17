"""The definition of the Gemma text models: what is computed, on no particular engine."""
