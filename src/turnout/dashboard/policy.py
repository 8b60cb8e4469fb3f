"""What the browser may do with a page, and who may ask for one.

The content security policy allows no inline script and no inline style. Figures carry `style` attributes, so `hoist`
moves them into one sheet, whose hash the policy of that response names.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import re
from collections.abc import Mapping

COOKIE = "turnout_token"
_TAG = re.compile(r"<[A-Za-z][^<>]*>")
_STYLE = re.compile(r'\sstyle="([^"]*)"')
# Declarations that our own code writes; anything else in a style attribute is dropped.
_HARMLESS = re.compile(r"[\w\s:;.,()#%+-]*")


def hoist(page: str) -> tuple[str, str]:
    """The page without style attributes, and the sheet that takes their place.

    An attribute becomes `data-c="…"`; the sheet has one rule for each distinct value. Text is not touched: a style
    attribute counts only inside a tag, and text holds no "<" that is not escaped.
    """
    rules: dict[str, str] = {}

    def moved(found: re.Match[str]) -> str:
        declared = html.unescape(found[1]).strip().rstrip(";")
        if not declared or not _HARMLESS.fullmatch(declared):
            return ""
        name = "c" + hashlib.blake2b(declared.encode(), digest_size=6).hexdigest()
        rules[name] = declared
        return f' data-c="{name}"'

    out = _TAG.sub(lambda tag: _STYLE.sub(moved, tag[0]), page)
    # Stronger than the classes of the stylesheet, as the attribute was.
    return out, "".join(f'html:root body [data-c="{name}"]{{{rule}}}' for name, rule in sorted(rules.items()))


def colour_sheet(light: Mapping[str, str], dark: Mapping[str, str]) -> str:
    """Variables that follow the page's colour scheme, whoever chose it."""
    pairs = (
        f"{name}:{value};" if value == dark.get(name, value) else f"{name}:light-dark({value},{dark[name]});"
        for name, value in light.items()
    )
    # On paper the stylesheet's light colours hold.
    return "@media screen{:root{" + "".join(pairs) + "}}"


def headers(*, sheet: str = "") -> dict[str, str]:
    """Security headers of a response; `sheet` is the text of its only style element."""
    style = "'self'"
    if sheet:
        style += f" 'sha256-{base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()}'"
    policy = (
        f"default-src 'none'; script-src 'self'; style-src {style}; img-src 'self' data: blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
    }


def host_allowed(header: str, allowed: frozenset[str]) -> bool:
    """Does the request name this server? A page elsewhere that resolves its own name to this machine does not."""
    name = header.rsplit(":", 1)[0] if not header.endswith("]") else header
    return "*" in allowed or name.strip("[]").lower() in allowed


def token_allowed(token: str, *, cookie: str, query: str, bearer: str) -> bool:
    """Is one of the given tokens the right one? Takes the same time for every wrong one."""
    if not token:
        return True
    given = (cookie, query, bearer.removeprefix("Bearer ").strip())
    return any([hmac.compare_digest(token.encode(), item.encode()) for item in given])
