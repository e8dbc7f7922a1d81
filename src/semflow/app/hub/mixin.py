"""The three methods that users of Hugging Face's libraries expect of a model, as a mixin for detectors."""

from pathlib import Path
from typing import Self, cast

from semflow.detectors import Detector

from .transfer import Metrics, load, push, save

__all__ = ["HubDetector", "HubMixin"]


class HubMixin:
    """`from_pretrained`, `save_pretrained` and `push_to_hub`, in the words of `huggingface_hub.ModelHubMixin`.

    They are `load`, `save` and `push`: safetensors and JSON alone, a folder appears when it is whole and is never
    written over, a new repository is private unless you say otherwise. Among the bases of a class it stands before
    `Detector`.

    Example:
        >>> class Inspector(HubMixin, Detector):
        ...     'A detector of your own, with its own methods.'
        >>> inspector = Inspector.from_pretrained("me/screws", revision="1f0c1f7")  # doctest: +SKIP
        >>> sorted(name for name in dir(Inspector) if name.endswith(("_pretrained", "_hub")))
        ['from_pretrained', 'push_to_hub', 'save_pretrained']
    """

    @classmethod
    def of(cls, detector: Detector) -> Self:
        """The detector, with these methods: its weights and all else are shared, not copied."""
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
        """The detector of a folder, or of a repository on the hub: `load`, whose arguments and errors these are."""
        return cls.of(load(pretrained_model_name_or_path, revision, token, cache_dir, local_files_only))

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        data: str | None = None,
        metrics: Metrics | None = None,
        license: str | None = None,
    ) -> Path:
        """Write the folder, new or empty, with its model card: `save`, whose `name` is `repo_id` here."""
        return save(cast(Detector, self), save_directory, repo_id, data, metrics, license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        data: str | None = None,
        metrics: Metrics | None = None,
        license: str | None = None,
        private: bool = True,
        branch: str | None = None,
        commit_message: str = "A detector of semflow",
        token: str | None = None,
    ) -> str:
        """Upload the folder and return the repository's address: `push`, whose `revision` is `branch` here."""
        source = cast(Detector, self)
        return push(source, repo_id, data, metrics, license, private, branch, commit_message, token)


class HubDetector(HubMixin, Detector):
    """A detector with the methods of `HubMixin`.

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
