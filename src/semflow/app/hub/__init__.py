"""Trained detectors on the Hugging Face Hub: push, pull and the model card."""

from .card import model_card
from .mixin import HubDetector, HubMixin
from .transfer import prepare, pull, push

__all__ = ["HubDetector", "HubMixin", "model_card", "prepare", "pull", "push"]
