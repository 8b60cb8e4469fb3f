"""No style attribute survives, only harmless declarations get into the sheet, and hosts and tokens are checked."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.dashboard.policy import headers, hoist, host_allowed, token_allowed


def test_attributes_become_rules_and_equal_ones_share_one() -> None:
    page, sheet = hoist('<p style="fill:var(--a)">x</p><i class="k" style="fill:var(--a)"/><b style="width:5%">y</b>')
    assert "style=" not in page
    assert page.count("data-c=") == 3 and sheet.count("{") == 2
    assert "fill:var(--a)" in sheet and "width:5%" in sheet


@given(st.text(max_size=40))
def test_text_is_left_alone_even_when_it_looks_like_an_attribute(words: str) -> None:
    escaped = html.escape(f'{words} style="fill:red" {words}', quote=False)
    page, sheet = hoist(f"<p>{escaped}</p>")
    assert page == f"<p>{escaped}</p>" and sheet == ""


@given(st.text(max_size=40))
def test_no_declaration_leaves_its_rule(declared: str) -> None:
    _, sheet = hoist(f'<p style="fill:red;{html.escape(declared)}">x</p>')
    assert sheet.count("{") == sheet.count("}") <= 1
    assert not re.search(r"[<>\\@/!*\"']", sheet.replace('html:root body [data-c="', "").replace('"]', "", 1))


def test_the_policy_allows_no_inline_code() -> None:
    policy = headers(sheet="a{}")["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "script-src 'self'" in policy


@pytest.mark.parametrize("name", ["localhost:1", "LOCALHOST", "127.0.0.1:8350", "[::1]:8350", "[::1]"])
def test_this_machine_is_answered(name: str) -> None:
    assert host_allowed(name, frozenset({"localhost", "127.0.0.1", "::1"}))


@pytest.mark.parametrize(
    "name", ["", "evil.example", "evil.example:8350", "127.0.0.1.evil.example", "localhost.evil:1"]
)
def test_another_name_is_not(name: str) -> None:
    assert not host_allowed(name, frozenset({"localhost", "127.0.0.1", "::1"}))


def test_the_token_is_taken_from_cookie_query_or_header() -> None:
    none = {"cookie": "", "query": "", "bearer": ""}
    assert token_allowed("", **none)
    assert not token_allowed("right-token", **none)
    assert not token_allowed("right-token", **(none | {"query": "wrong"}))
    for place in none:
        assert token_allowed("right-token", **(none | {place: "right-token"}))
    assert token_allowed("right-token", **(none | {"bearer": "Bearer right-token"}))
