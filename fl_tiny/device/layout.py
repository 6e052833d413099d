# SPDX-License-Identifier: Apache-2.0
"""Names of the files below a device's DIR that more than one module touches."""

DEVICE_KEY = "device.key"  # secret/: Ed25519 seed
PENDING_CODE = "pairing_code"  # secret/: a code from a card, until the device is enrolled
PSK = "psk"  # secret/: the DTLS key of the enrolled device
BASE = "base.tflite"  # model/: slot a, a fleet's model as its manifest names it
BASE_B = "base-b.tflite"  # model/: slot b
SLOTS = {"a": BASE, "b": BASE_B}
CANARY = ".canary.npz"  # model/: what a new model is tried on, while it is
CURRENT = "current.tflite"  # model/: what programs of the board load; switched atomically, perhaps a link to a tmpfs
FORMER = (".next.tflite", ".old.tflite")  # model/: files of a switch before version 5 of the database
