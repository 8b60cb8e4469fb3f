"""README's table and the page of verdicts are what the committed results say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from turnout.claims.page import update_readme, verdicts, write_down, write_page
from turnout.claims.store import results_dir
from turnout.claims.table import HEADLINES, headlines, markdown, table

DOCS = results_dir().parent / "docs"


def test_the_committed_page_is_what_reproduce_draws() -> None:
    assert (DOCS / "claims.md").read_text() == verdicts(results_dir(), "../results")


def test_every_row_is_there_with_its_verdict_and_every_link_leads_to_runs() -> None:
    page = (DOCS / "claims.md").read_text()
    rows = table()
    assert len(re.findall(r"^\| \*\*", page, re.M)) == len(rows)
    for row in rows:
        assert row["statement"].replace("|", "/") in page and row["verdict"] in page
    links = set(re.findall(r"\]\(([^)]+)\)", page))
    assert links and all((DOCS / link).is_dir() for link in links)


def test_the_page_of_an_empty_folder_says_not_measured(tmp_path: Path) -> None:
    text = write_page(tmp_path / "claims.md", tmp_path).read_text()
    assert text.count("not measured") >= len(table(tmp_path))


def test_a_checkout_gets_both_and_an_installed_package_a_page_where_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    assert write_down(tmp_path / "results") == [Path("claims.md")]
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "README.md").write_text("<!-- claims -->\n\n<!-- /claims -->\n")
    assert write_down(tmp_path / "results") == [tmp_path / "docs" / "claims.md", tmp_path / "README.md"]
    assert "not measured" in (tmp_path / "README.md").read_text()


def test_readme_is_changed_between_its_markers_and_nowhere_else(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- claims -->\nold\n<!-- /claims -->\nafter\n")
    assert update_readme(readme)
    shown = markdown(headlines(), HEADLINES)
    assert readme.read_text() == f"before\n<!-- claims -->\n{shown}\n<!-- /claims -->\nafter\n"
    for text in ("no markers", "<!-- claims -->\nno end"):
        readme.write_text(text)
        assert not update_readme(readme) and readme.read_text() == text
    assert not update_readme(tmp_path / "none.md")
