"""Which addresses a task may connect to, and a network backend that asks before and after every connection.

The address decides, never the name: names are resolved here, the socket is opened to the checked literal, and the
peer of the open socket is checked once more. So redirects, IP literals in odd spellings, DNS answers that change and
addresses wrapped in IPv6 forms all meet the same rule. This module must never open a socket to an unchecked address.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpcore

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Takes a host name and a port, returns the addresses as text. Raises OSError when there are none."""

MAX_RESOLVED_ADDRESSES = 16
"""How many answers of one name are tried."""

REFUSED_NETWORKS: Sequence[IPNetwork] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "169.254.0.0/16",
        "192.0.0.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "100.100.100.200/32",
        "168.63.129.16/32",
        "::/128",
        "fe80::/10",
        "ff00::/8",
        "fd00:ec2::/32",
        "fd20:ce::/32",
        "100::/64",
    )
)
"""Never reachable, whatever the settings say: this host by its nameless address, link-local, multicast, reserved
space, and the addresses at which clouds hand out credentials (AWS, Azure, Google, Oracle, Alibaba)."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")
_IPV4_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")
_SITE_LOCAL = ipaddress.IPv6Network("fec0::/10")
_ISATAP_MARKS = (0x00005EFE, 0x02005EFE)
_LOOPBACK_6 = ipaddress.IPv6Address("::1")


class AddressRefused(Exception):
    """The policy forbids the address. The message says which one and which setting would allow it."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """One entry of `task_executor.http.allowed_networks`: a network or a host name, with a port or for all ports."""

    network: IPNetwork | None
    host: str | None
    port: int | None

    def covers(self, host: str, address: IPAddress, port: int) -> bool:
        """Return whether this entry lets a request for `host` reach `address` at `port`."""
        if self.port is not None and self.port != port:
            return False
        if self.host is not None:
            return self.host == host
        return (
            self.network is not None and address.version == self.network.version and address in self.network
        )


def parse_allowance(text: str) -> Allowance:
    """Return the entry for `10.0.0.0/8`, `10.0.0.5`, `10.0.0.5:443`, `[::1]:8000`, `services` or `services:9000`.

    Raises: ValueError saying what is wrong with the text.
    """
    entry = text.strip().lower()
    network = _network_or_none(entry.removeprefix("[").removesuffix("]"))
    if network is not None:
        return Allowance(network, None, None)
    host, colon, port_text = entry.rpartition(":")
    if not colon:
        host, port_text = entry, ""
    port: int | None = None
    if colon:
        if not (port_text.isascii() and port_text.isdigit()) or not 1 <= int(port_text) <= 65535:
            raise ValueError(f"{text!r}: the part after the last colon must be a port from 1 to 65535")
        port = int(port_text)
    network = _network_or_none(host.removeprefix("[").removesuffix("]"))
    if network is not None:
        return Allowance(network, None, port)
    if not host or not all(
        part and part.replace("-", "").replace("_", "").isalnum() for part in host.split(".")
    ):
        raise ValueError(
            f"{text!r}: give a network (10.0.0.0/8), an address, a host name, or one of these with :port"
        )
    return Allowance(None, host, port)


def _network_or_none(text: str) -> IPNetwork | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Decides about addresses. `own_ports` are this product's: on loopback they need an entry that names the port."""

    allowances: tuple[Allowance, ...] = ()
    own_ports: frozenset[int] = field(default_factory=frozenset)

    def refusal(self, host: str, address_text: str, port: int) -> str | None:
        """Return why a request for `host` must not reach the address, or None when it may."""
        try:
            address = effective_address(ipaddress.ip_address(address_text))
        except ValueError:
            return f"{address_text!r} is not an IP address"
        if any(address.version == net.version and address in net for net in REFUSED_NETWORKS):
            return (
                f"{address} is link-local, reserved, multicast or a metadata service and is never reachable"
            )
        carried = carried_address(address)
        if carried is not None and not _is_public(carried):
            return f"{address} carries the address {carried}, which is not public"
        entries = [entry for entry in self.allowances if entry.covers(host.lower(), address, port)]
        if address.is_loopback and port in self.own_ports and all(entry.port is None for entry in entries):
            return f"port {port} belongs to this product; list {host}:{port} to allow it"
        if entries or _is_public(address):
            return None
        return f"{address} is a loopback or private address"


def effective_address(address: IPAddress) -> IPAddress:
    """Return the address that the operating system really connects to: an IPv4-mapped one is the IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.scope_id is not None:
            return ipaddress.IPv6Address(int(address))
    return address


def carried_address(address: IPAddress) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 transition form delivers to, or None.

    Source: RFC 6052 and 8215 (NAT64), 3056 (6to4), 4380 (Teredo), 5214 (ISATAP), 4291 (IPv4-compatible), 2765.
    """
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in net for net in (_NAT64, _NAT64_LOCAL, _IPV4_TRANSLATED)):
        return low
    if address in _IPV4_COMPATIBLE and address != _LOOPBACK_6:
        return low
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP_MARKS:
        return low
    return None


def _is_public(address: IPAddress) -> bool:
    if any(address.version == net.version and address in net for net in REFUSED_NETWORKS):
        return False
    if isinstance(address, ipaddress.IPv6Address) and (address in _SITE_LOCAL or address in _NAT64_LOCAL):
        return False
    if isinstance(address, ipaddress.IPv6Address) and address in _NAT64:
        return True
    return address.is_global and not address.is_multicast


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host name, as the system resolves it. Raises OSError when there are none."""
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections for httpcore, to addresses that the policy allows and to no others."""

    def __init__(self, policy: AddressPolicy, *, resolver: Resolver = resolve) -> None:
        self._policy = policy
        self._resolver = resolver
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check, connect to the checked literal, check the peer.

        Raises: AddressRefused, or httpcore's ConnectError and ConnectTimeout.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._connect_first(host, port, local_address, socket_options)
        except TimeoutError:
            raise httpcore.ConnectTimeout(
                f"no connection to {host}:{port} within {timeout} seconds"
            ) from None

    async def _connect_first(
        self, host: str, port: int, local_address: str | None, socket_options: Iterable[Any] | None
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception | None = None
        for address in await self._allowed_addresses(host, port):
            try:
                stream = await self._sockets.connect_tcp(
                    address, port, local_address=local_address, socket_options=socket_options
                )
            except httpcore.ConnectError as error:
                failure = error
                continue
            peer = stream.get_extra_info("server_addr")
            refusal = (
                self._policy.refusal(host, str(peer[0]), port) if peer else "the peer's address is unknown"
            )
            if refusal is not None:
                await stream.aclose()
                raise AddressRefused(_explain(host, port, refusal))
            return stream
        raise httpcore.ConnectError(f"nothing accepts connections at {host}:{port}") from failure

    async def _allowed_addresses(self, host: str, port: int) -> list[str]:
        try:
            addresses = list(await self._resolver(host, port))[:MAX_RESOLVED_ADDRESSES]
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the host name {host!r} cannot be resolved") from error
        refusals = {address: self._policy.refusal(host, address, port) for address in addresses}
        allowed = [address for address, refusal in refusals.items() if refusal is None]
        if not allowed:
            first = next((text for text in refusals.values() if text is not None), "it has no address")
            raise AddressRefused(_explain(host, port, first))
        return allowed

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Refuse: tasks speak HTTP over TCP only."""
        raise AddressRefused("tasks cannot connect to unix sockets")

    async def sleep(self, seconds: float) -> None:
        """Wait, for httpcore's own connection retries (which are off)."""
        await asyncio.sleep(seconds)


def _explain(host: str, port: int, refusal: str) -> str:
    return (
        f"a task may not connect to {host}:{port}: {refusal}; "
        "an operator allows loopback and private networks in task_executor.http.allowed_networks"
    )


@cache
def client_tls(*, verify: bool) -> ssl.SSLContext:
    """Return the TLS settings of outgoing requests. Without `verify` the peer's certificate is not looked at."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
