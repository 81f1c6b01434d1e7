"""Serving: a bundle that holds a trained model, and a scorer that answers requests from it and a history store."""

from laser.serve.bundle import Bundle
from laser.serve.requests import Request
from laser.serve.scorer import Scorer

__all__ = ["Bundle", "Request", "Scorer"]
