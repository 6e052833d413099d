# SPDX-License-Identifier: Apache-2.0
"""libcoap's clients and servers, and the operator's page, whose tests scripts/test runs too."""

from __future__ import annotations

from .inner import ROOT, passed

TESTS = ROOT / "tests"


def test_libcoap_and_ours_understand_each_other() -> None:
    print(f"Shows 8: OpenSSL and GnuTLS, both directions, 300 KB in blocks, Observe: {passed(TESTS / 'interop')}")


def test_the_operators_page_is_true_of_commands_and_log() -> None:
    told = passed(TESTS / "test_docs.py", "-k", "operator or operations or command")
    lines = len((ROOT / "docs/operations.md").read_text().splitlines())
    print(f"Shows 11: docs/operations.md, {lines} lines; its commands and lines of the log against the code: {told}")
