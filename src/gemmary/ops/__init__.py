"""The ops that the model is written in: their specification and the plain implementation that is the oracle."""
