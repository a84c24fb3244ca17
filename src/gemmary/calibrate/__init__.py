"""Quantizing a model to a stated quality: a text is read once, each matrix is rounded when the text arrives at it, and
what was written is measured."""
