# SPDX-License-Identifier: Apache-2.0
"""The edge of the network: DTLS by the system's OpenSSL, CoAP by aiocoap."""
