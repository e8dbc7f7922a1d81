"""The cells of a table, from the options of the command or from kept cells."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semflow._version import __version__
from semflow.errors import ConfigError

from ..shared.datasets import Data, categories
from ..shared.store import CellStore, Kept, Key
from . import peers
from .cells import Cell
from .options import epochs_of, pairs
from .tables import Row, Table

FIT = ("batch_size", "learning_rate", "schedule")


@dataclass
class Planned:
    """A cell of a table, and what the store has of it.

    Args:
        row: its row in the table.
        key: of its cell; the row's name there may be another one, see `Row.cells`.
        cell: how to measure it; None in a report of kept cells.
        kept: the kept cell, or None.
    """

    row: Row
    key: Key
    cell: Cell | None = None
    kept: Kept | None = None


def choose_rows(table: Table, options: argparse.Namespace) -> list[Row]:
    """Return the rows that the options choose."""
    if options.peers and not options.report:
        peers.require_anomalib()
    rows = list(table.rows)
    if options.peers:
        rows += [row for row in peers.OURS if row.name not in {known.name for known in rows}] + list(peers.PEERS)
    names = [row.name for row in rows]
    for name in options.rows or ():
        if name not in names:
            raise ConfigError(f"--rows must be of {', '.join(names)}, but got {name}")
    wanted = options.rows or [row.name for row in rows if not (row.control and options.no_controls)]
    return [row for row in rows if row.name in wanted]


def kept_cells(rows: Sequence[Row], options: argparse.Namespace, store: CellStore) -> list[Planned]:
    """Return the newest kept cells of some rows, whatever their settings, for a report.

    Categories, seeds and rows that the options leave out are those of the kept cells.
    """
    latest = store.latest()
    names = {row.cells or row.name for row in rows}
    found = [key for key in latest if key.row in names]
    if not found:
        raise ConfigError(f"{store.path} must contain cells of {', '.join(sorted(names))}, but got none")
    wanted = options.categories or list(dict.fromkeys(key.category for key in found))
    seeds = options.seeds or sorted({key.seed for key in found})
    present = {key.row for key in found} if not options.rows else names
    keys = [
        (row, Key(row.cells or row.name, category, seed))
        for seed in seeds
        for category in wanted
        for row in rows
        if (row.cells or row.name) in present
    ]
    return [Planned(row, key, kept=latest.get(key)) for row, key in keys]


def plan(table: Table, rows: Sequence[Row], options: argparse.Namespace, store: CellStore) -> list[Planned]:
    """Return the cells of some rows, seed by seed, so that an interrupted run has complete first seeds."""
    if options.data is None:
        raise ConfigError("--data must be the folder of the data set, but got none")
    there = categories(table.data, options.data)
    wanted = options.categories or there
    for name in wanted:
        if name not in there:
            raise ConfigError(f"--categories must be of {', '.join(there)}, but got {name}")
    epochs = epochs_of(options.epochs, wanted)
    fit = pairs(options.fit, "--fit")
    for name in fit:
        if name not in FIT:
            raise ConfigError(f"--fit must set {', '.join(FIT)}, but got {name}; set epochs by --epochs")
    common = {
        "backbone.name": options.backbone or table.backbone,
        "backbone.weights": options.weights,
        "image_size": options.image_size,
    }
    given = pairs(options.set, "--set")
    arguments = _arguments(rows, common, given)
    data = {name: Data(table.data, str(options.data), name) for name in wanted}
    prints = {name: one.fingerprint() for name, one in data.items()}
    planned = []
    for seed in options.seeds or (0, 1, 2):
        for category in wanted:
            for row in rows:
                flow = is_trained(row.recipe)
                changes = {"epochs": epochs[category], **fit} if flow else {}
                changes = {name: value for name, value in changes.items() if value is not None}
                settings = {
                    **_versions(row.recipe),
                    "recipe": row.recipe,
                    "backbone": common["backbone.name"],
                    "weights": options.weights,
                    "image_size": options.image_size,
                    "set": given if flow else {k: v for k, v in given.items() if k in arguments[row.name]},
                    "fit": changes,
                    "evaluations": options.track_best if flow else 1,
                    "data": {"kind": table.data, "fingerprint": prints[category]},
                }
                key = Key(row.cells or row.name, category, seed)
                evaluations = settings["evaluations"]
                cell = Cell(key, row.recipe, arguments[row.name], data[category], settings, changes, evaluations)
                planned.append(Planned(row, key, cell, store.find(key, settings)))
    return planned


def is_trained(recipe: str) -> bool:
    """Return False for a peer, and for a recipe that is fitted in one pass without gradient steps."""
    from semflow.recipes import RECIPES, resolve_settings

    return recipe not in peers.RECIPES and resolve_settings(RECIPES[recipe], {})["training"].epochs > 0


def _versions(recipe: str) -> dict[str, str]:
    return {"semflow": __version__} | ({"anomalib": peers.anomalib_version()} if recipe in peers.RECIPES else {})


def _arguments(rows: Sequence[Row], common: dict[str, Any], given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of each row, checked; those of the command that a recipe does not have are left out."""
    from semflow.recipes import RECIPES, resolve_settings, setting_names

    names = {row.name: peers.RECIPES.get(row.recipe) or setting_names(RECIPES[row.recipe]) for row in rows}
    for name in given:
        if not any(name in known for known in names.values()):
            known = list(dict.fromkeys(one for row in rows for one in names[row.name]))
            raise ConfigError(f"--set must be of {', '.join(known)}, but got {name}")
    found = {}
    for row in rows:
        mine = {k: v for k, v in {**common, **given}.items() if k in names[row.name]} | dict(row.settings)
        if row.recipe not in peers.RECIPES:
            resolve_settings(RECIPES[row.recipe], mine)
        found[row.name] = mine
    return found
