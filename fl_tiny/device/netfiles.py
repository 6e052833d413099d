# SPDX-License-Identifier: Apache-2.0
"""Network settings as files of systemd-networkd and wpa_supplicant; pure.

Source: systemd.network(5) of 252; wpa_supplicant.conf(5) of 2.10.
"""

from __future__ import annotations

import hashlib

from fl_tiny.board import Network

NETWORK = "systemd/network/10-fl-tiny.network"  # below /run; before an image's own by its number
WIRELESS = "wlan0"
_HEAD = "# Written by fl-tiny device provision at every boot.\n"


def wpa_file(network: Network) -> str:
    """Where below /run the file of wpa_supplicant lies, as its ``wpa_supplicant@`` service can be told."""
    return f"fl-tiny/wpa_supplicant-{network.interface or WIRELESS}.conf"


def files_of(network: Network) -> dict[str, str]:
    """The files that bring these settings about, by their paths below /run; the one of wpa_supplicant is secret."""
    found = {}
    if network.ssid is not None or network.address is not None:
        found[NETWORK] = _networkd(network)
    if network.ssid is not None:
        found[wpa_file(network)] = _wpa(network)
    return found


def key_of(network: Network) -> str:
    """The 256 bits that WPA2 makes of SSID and passphrase, in hexadecimal: all that a board needs.

    Source: IEEE 802.11-2020, J.4.1.
    """
    assert network.ssid is not None
    assert network.password is not None
    if len(network.password) == 64:
        return network.password.lower()
    return hashlib.pbkdf2_hmac("sha1", network.password.encode(), network.ssid.encode(), 4096, 32).hex()


def _networkd(network: Network) -> str:
    kind = "ether\nKind=!*" if network.ssid is None else "wlan"  # Kind: no bridges, no tunnels
    lines = ["[Match]", f"Name={network.interface}" if network.interface else f"Type={kind}", "", "[Network]"]
    if network.address is None:
        lines.append("DHCP=yes")
    else:
        lines.append(f"Address={network.address}")
    if network.gateway is not None:
        lines.append(f"Gateway={network.gateway}")
    lines += [f"DNS={server}" for server in network.dns]
    lines += ["IPv6AcceptRA=yes", "MulticastDNS=yes"]
    if network.address is None:
        lines += ["", "[DHCPv4]", "ClientIdentifier=mac"]  # the same lease whatever the machine's id is
    return _HEAD + "\n".join(lines) + "\n"


def _wpa(network: Network) -> str:
    assert network.ssid is not None
    lines = ["ctrl_interface=/run/wpa_supplicant", "update_config=0"]
    if network.country is not None:
        lines.append(f"country={network.country}")
    lines += ["network={", f"    ssid={network.ssid.encode().hex()}"]  # without quotes: bytes in hexadecimal
    if network.hidden:
        lines.append("    scan_ssid=1")
    if network.password is None:
        lines.append("    key_mgmt=NONE")
    else:
        lines += ["    key_mgmt=WPA-PSK WPA-PSK-SHA256", "    ieee80211w=1", f"    psk={key_of(network)}"]
    return _HEAD + "\n".join([*lines, "}"]) + "\n"
