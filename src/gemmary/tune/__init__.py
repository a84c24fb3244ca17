"""Tuning: rows into documents, documents into steps, steps into adapters or new weights."""
