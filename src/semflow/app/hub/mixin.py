"""Mixin for detectors with the methods of models in Hugging Face's libraries."""

from pathlib import Path
from typing import Any, Self, cast

from semflow.detectors import Detector

from .transfer import MESSAGE, prepare, pull, push


class HubMixin:
    """Mixin with `from_pretrained`, `save_pretrained` and `push_to_hub`, as in `huggingface_hub.ModelHubMixin`.

    They call `pull`, `prepare` and `push`. The mixin must precede `Detector` among the bases of a class.

    Example:
        >>> class Inspector(HubMixin, Detector): ...
        >>> sorted(name for name in dir(Inspector) if name.endswith(("_pretrained", "_hub")))
        ['from_pretrained', 'push_to_hub', 'save_pretrained']
    """

    @classmethod
    def of(cls, detector: Detector) -> Self:
        """Return a detector of this class that shares weights and attributes with the given one."""
        same = cls.__new__(cls)
        object.__setattr__(same, "__dict__", detector.__dict__)
        return same

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a detector from a folder or the hub; `options` and errors are those of `pull`."""
        return cls.of(pull(pretrained_model_name_or_path, **options))

    def save_pretrained(self, save_directory: str | Path, *, repo_id: str | None = None, **options: Any) -> Path:
        """Write a folder with a model card; `repo_id` is the `name` of `prepare`, and `options` are its others."""
        return prepare(cast(Detector, self), save_directory, repo_id, **options)

    def push_to_hub(
        self, repo_id: str, *, branch: str | None = None, commit_message: str = MESSAGE, **options: Any
    ) -> str:
        """Upload the detector and return the repository's address; `branch` is the `revision` of `push`.

        The other arguments are those of `push`: `data`, `metrics`, `license`, `private` and `token`.
        """
        return push(cast(Detector, self), repo_id, revision=branch, message=commit_message, **options)


class HubDetector(HubMixin, Detector):
    """Detector with the methods of `HubMixin`.

    Example:
        >>> from semflow.recipes import Backbone, cflow_ad
        >>> HubDetector.of(cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)).provenance.recipe
        'cflow_ad'
    """
