"""From options to the cells of a table."""

import argparse
import inspect
from collections.abc import Sequence
from typing import Any

from semflow.errors import ConfigError

from ..shared.datasets import Data, categories
from . import peers
from .cells import Cell, arguments_of
from .options import epochs_of, pairs, plain
from .summary import Planned
from .tables import Row, Table

__all__ = ["backbone_of", "choose_rows", "plan"]

FIT = ("batch_size", "learning_rate", "schedule")


def choose_rows(table: Table, options: argparse.Namespace) -> list[Row]:
    """The rows that are asked for.

    Raises:
        ConfigError: the table has no such row.
    """
    if options.peers:
        peers.require_anomalib()
    there = [*table.rows, *(peers.PEERS if options.peers else ())]
    names = [row.name for row in there]
    for name in options.rows or ():
        if name not in names:
            raise ConfigError(f"--rows {name}: {table.name} has {', '.join(names)}")
    wanted = options.rows or [row.name for row in there if not (row.control and options.no_controls)]
    return [row for row in there if row.name in wanted]


def backbone_of(table: Table, options: argparse.Namespace) -> str:
    """The backbone that the cells are built on."""
    return str(options.backbone or table.backbone)


def plan(table: Table, rows: Sequence[Row], options: argparse.Namespace) -> list[Planned]:
    """The cells of some rows, seed by seed, so that a run that is stopped has whole tables of the first seeds.

    Raises:
        ConfigError, DataError: an option does not fit the recipes or the data.
    """
    if options.data is None:
        raise ConfigError("--data must name the folder of the data set, but is not given")
    there = categories(table.data, options.data)
    wanted = options.categories or there
    for name in wanted:
        if name not in there:
            raise ConfigError(f"--categories {name}: {options.data} has {', '.join(there)}")
    epochs = epochs_of(options.epochs, wanted)
    fit = {name: plain(word) for name, word in pairs(options.fit, "--fit").items()}
    for name in fit:
        if name not in FIT:
            raise ConfigError(f"--fit {name}: expected one of {', '.join(FIT)}; epochs have an option of their own")
    common = {"backbone": backbone_of(table, options), "weights": options.weights, "image_size": options.image_size}
    given = _given(rows, pairs(options.set, "--set"), common)
    data = {name: Data(table.data, str(options.data), name) for name in wanted}
    prints = {name: d.fingerprint() for name, d in data.items()}
    return [
        Planned(
            row,
            Cell(
                recipe=row.recipe,
                arguments=arguments_of(row.recipe, common, given.get(row.recipe, {}), row.arguments),
                data=data[category],
                fingerprint=prints[category],
                seed=seed,
                fit={} if row.recipe in peers.RECIPES else {"epochs": epochs[category], **fit},
                evaluations=1 if row.recipe in peers.RECIPES else options.track_best,
            ),
        )
        for seed in options.seeds
        for category in wanted
        for row in rows
    ]


def _given(rows: Sequence[Row], words: dict[str, str], common: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arguments of --set for each recipe, each of the type of the recipe's default."""
    from semflow.app.cli.fit import recipe_arguments
    from semflow.recipes import RECIPES

    recipes = list(dict.fromkeys(row.recipe for row in rows if row.recipe not in peers.RECIPES))
    for recipe in recipes:
        if recipe not in RECIPES:
            raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}, but got {recipe!r}")
    has = {recipe: set(inspect.signature(RECIPES[recipe]).parameters) for recipe in recipes}
    for name in words:
        if not any(name in names for names in has.values()):
            raise ConfigError(f"--set {name}: no recipe of this table ({', '.join(recipes)}) has this argument")
    reserved = {**common, "seed": 0}
    return {
        recipe: recipe_arguments(
            RECIPES[recipe], {name: word for name, word in words.items() if name in has[recipe]}, reserved
        )
        for recipe in recipes
    }
