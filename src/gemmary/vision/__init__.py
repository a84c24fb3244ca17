"""Pictures: how they come in (`preprocess.py`); the boxes and masks that models write (`objects.py`, `masks.py`)."""
