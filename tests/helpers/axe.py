"""axe-core, which finds what people with a disability cannot use on a page.

The script is in the package axe-playwright-python, of which nothing else is used: `make install-test` installs it
without the browsers' driver that it depends on.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.helpers.browser import Browser

PACKAGE = "axe_playwright_python"


def accessibility_faults(window: Browser, scope: str = "document") -> list[str]:
    """The violations of WCAG 2.2 AA and of axe-core's good practice: rule, place and reason.

    The test is skipped if axe-core is not installed.

    Args:
        window: A window that shows the page.
        scope: A JavaScript expression: the part of the page that is examined.
    """
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        pytest.skip("no axe-core: make install-test")
    if not window.run("done(typeof axe === 'object')"):
        window.run((Path(package.origin).parent / "axe.min.js").read_text() + "; done()")
    script = """axe.run(SCOPE, {resultTypes: ["violations"]}).then((result) => done(result.violations.flatMap(
        (rule) => rule.nodes.map((node) => `${rule.id}: ${node.target}: ${node.failureSummary}`))))"""
    faults: list[str] = window.run(script.replace("SCOPE", scope))
    return faults
