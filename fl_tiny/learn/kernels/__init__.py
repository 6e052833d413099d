# SPDX-License-Identifier: Apache-2.0
"""A whole model run by numpy alone, to the bit as tflite-runtime 2.14 or LiteRT runs it."""
