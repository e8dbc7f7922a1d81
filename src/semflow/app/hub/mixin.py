"""Mixin for detectors with the methods of models in Hugging Face's libraries."""

from pathlib import Path
from typing import Self, cast

from semflow.detectors import Detector

from .transfer import Metrics, prepare, pull, push

__all__ = ["HubDetector", "HubMixin"]


class HubMixin:
    """Mixin with `from_pretrained`, `save_pretrained` and `push_to_hub`, as in `huggingface_hub.ModelHubMixin`.

    They call `pull`, `prepare` and `push`. The mixin must precede `Detector` among the bases of a class.

    Example:
        >>> class Inspector(HubMixin, Detector):
        ...     'Detector with methods of its own.'
        >>> inspector = Inspector.from_pretrained("me/screws", revision="1f0c1f7")  # doctest: +SKIP
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
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a detector from a folder or the hub; arguments and errors are those of `pull`."""
        return cls.of(pull(pretrained_model_name_or_path, revision, token, cache_dir, local_files_only))

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        data: str | None = None,
        metrics: Metrics | None = None,
        license: str | None = None,
    ) -> Path:
        """Write a folder with a model card; `repo_id` is the `name` of `prepare`."""
        return prepare(cast(Detector, self), save_directory, repo_id, data, metrics, license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        data: str | None = None,
        metrics: Metrics | None = None,
        license: str | None = None,
        private: bool = True,
        branch: str | None = None,
        commit_message: str = "Add a detector of semflow",
        token: str | None = None,
    ) -> str:
        """Upload the detector and return the repository's address; `branch` is the `revision` of `push`."""
        source = cast(Detector, self)
        return push(source, repo_id, data, metrics, license, private, branch, commit_message, token)


class HubDetector(HubMixin, Detector):
    """Detector with the methods of `HubMixin`.

    Example:
        >>> import tempfile
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     made = HubDetector.of(detector).save_pretrained(Path(parent) / "screws", data="screws")
        ...     again = HubDetector.from_pretrained(made)
        >>> again.provenance.recipe, isinstance(again, Detector), hasattr(again, "push_to_hub")
        ('cflow_ad', True, True)
    """
