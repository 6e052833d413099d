# SPDX-License-Identifier: Apache-2.0
"""No example of a property has a deadline: a test asserts no speed, and other work may share the machine."""

from hypothesis import settings

settings.register_profile("fl-tiny", deadline=None)
settings.load_profile("fl-tiny")
