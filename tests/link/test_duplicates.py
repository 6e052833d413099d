# SPDX-License-Identifier: Apache-2.0
"""70,000 requests over one session: message IDs come round once."""

from __future__ import annotations

import pytest
from net.duplicates import shown_and_closed


@pytest.mark.full
def test_seventy_thousand_requests_get_no_stale_answer() -> None:
    shown_and_closed(70_000, 65_536)
