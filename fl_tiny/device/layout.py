# SPDX-License-Identifier: Apache-2.0
"""Names of the files below a device's DIR that more than one module touches."""

DEVICE_KEY = "device.key"  # secret/: Ed25519 seed
PSK = "psk"  # secret/: the DTLS key of the enrolled device
BASE = "base.tflite"  # model/: as the fleet's manifest names it
CURRENT = "current.tflite"  # model/: what programs of the board load; switched atomically
NEXT = ".next.tflite"  # model/: chosen, not switched to yet
