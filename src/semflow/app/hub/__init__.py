"""Trained detectors on the Hugging Face Hub, or as folders of its form: save, push, load, and the model card."""

from .card import model_card
from .mixin import HubDetector, HubMixin
from .transfer import load, push, save

__all__ = ["HubDetector", "HubMixin", "load", "model_card", "push", "save"]
