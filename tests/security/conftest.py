"""The browser that the tests of the page use."""

from web.conftest import chromium

__all__ = ["chromium"]
