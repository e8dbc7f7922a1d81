"""Files of the project besides its code: citation, issue forms, workflows and the table of extras."""

import re
import shutil
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import semflow

yaml = pytest.importorskip("yaml", reason="needs PyYAML, a dependency of timm")
ROOT = Path(__file__).resolve().parents[1]

# Allowed keys of the schema of Citation File Format 1.2.0.
KEYS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip
REFERENCE_KEYS = {
    "abstract", "authors", "collection-title", "conference", "date-published", "doi", "editors", "end", "isbn",
    "journal", "month", "notes", "pages", "publisher", "start", "title", "type", "url", "volume", "year",
}  # fmt: skip
PERSON, ENTITY = {"family-names", "given-names", "name-particle", "affiliation", "orcid", "email"}, {"name", "website"}


def check_citation(citation: dict[str, Any]) -> None:
    assert {"authors", "cff-version", "message", "title"} <= citation.keys() <= KEYS
    assert citation["cff-version"] == "1.2.0"
    assert citation.get("type", "software") in ("software", "dataset")
    check_work(citation)
    for reference in citation.get("references", []):
        assert {"authors", "title", "type"} <= reference.keys() <= REFERENCE_KEYS
        assert isinstance(reference.get("year", 2000), int)
        assert isinstance(reference.get("volume", 1), int | str)
        check_work(reference)
    if "date-released" in citation:
        date.fromisoformat(str(citation["date-released"]))


def check_work(work: dict[str, Any]) -> None:
    assert isinstance(work["title"], str)
    assert work["authors"]
    for author in work["authors"]:
        assert author
        assert author.keys() <= PERSON or author.keys() <= ENTITY, author
        assert all(isinstance(value, str) and value for value in author.values())


def test_citation_is_valid_and_names_the_current_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    check_citation(citation)
    assert citation["version"] == semflow.__version__
    assert citation["license"] == "Apache-2.0"
    assert all(isinstance(keyword, str) for keyword in citation["keywords"])
    paper = citation["references"][0]
    assert [author["family-names"] for author in paper["authors"]] == ["Kim", "Baik", "Kim"]


@pytest.mark.parametrize(
    "change",
    [
        {"title": None},
        {"cff-version": "1.1.0"},
        {"authors": []},
        {"authors": [{"name": "A", "given-names": "B"}]},
        {"author": "somebody"},
        {"type": "program"},
        {"date-released": "24.11.2026"},
        {"references": [{"type": "article", "title": "x"}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_check_citation_rejects_invalid_citations(change: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check_citation({**citation, **change})


def test_issue_forms_have_name_description_and_labeled_elements() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 4
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name == "config.yml":
            assert form.keys() <= {"blank_issues_enabled", "contact_links"}
            continue
        assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "body", "labels", "title"}
        ids = [element["id"] for element in form["body"]]
        assert len(set(ids)) == len(ids)
        for element in form["body"]:
            assert element["type"] in ("textarea", "input", "dropdown", "checkboxes")
            assert element["attributes"]["label"]


def test_workflows_name_existing_files_and_extras() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        runs = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
        named = re.findall(r"(?<![\w.])((?:docs|tests|src|\.ci)/[\w./]+)", " ".join(runs))
        assert named
        assert [name for name in named if not (ROOT / name).exists()] == []
        extras = set(re.findall(r"-e \"\.\[([\w,]+)\]\"", " ".join(runs)))
        known = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
        assert {extra for group in extras for extra in group.split(",")} <= known


def test_installation_page_lists_all_extras() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\[", project, re.DOTALL)
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    table = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", table)) == set(re.findall(r"^(\w+) = ", extras[1], re.MULTILINE))


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="needs git and its files")
def test_no_large_file_is_committed() -> None:
    """Such as weights, models or what a library has left in the working folder."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert files
    assert [file for file in files if file.is_file() and file.stat().st_size > 2**20] == []
