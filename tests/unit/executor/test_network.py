"""The address policy: what a task may connect to, as tables."""

import httpcore
import pytest

from agents.task_executor.network import (
    AddressPolicy,
    AddressRefused,
    GuardedBackend,
    parse_allowance,
)

ALWAYS_REFUSED = [
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "169.254.169.254",
    "169.254.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "fd00:ec2::254",
    "fd20:ce::254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "239.255.255.250",
    "ff02::1",
    "240.0.0.1",
    "255.255.255.255",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::a9fe:a9fe",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:c0a8:101::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001:4860::5efe:7f00:1",
    "2001:4860::200:5efe:a00:1",
    "::7f00:1",
    "::ffff:0:7f00:1",
    "100::1",
    "not an address",
]
NEED_PERMISSION = [
    "127.0.0.1",
    "127.8.9.10",
    "::1",
    "::ffff:127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "fc00::1",
    "fd12:3456::1",
    "fec0::1",
    "198.18.0.1",
    "192.0.2.1",
    "2001:db8::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
EVERYTHING = tuple(parse_allowance(text) for text in ("0.0.0.0/0", "::/0"))


@pytest.mark.parametrize("address", ALWAYS_REFUSED)
def test_dangerous_address_is_refused_even_when_everything_is_allowed(address: str) -> None:
    assert AddressPolicy(EVERYTHING).refusal("host", address, 80) is not None


@pytest.mark.parametrize("address", NEED_PERMISSION)
def test_loopback_and_private_addresses_need_permission(address: str) -> None:
    assert AddressPolicy().refusal("host", address, 80) is not None
    assert AddressPolicy(EVERYTHING).refusal("host", address, 80) is None


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_reachable_without_permission(address: str) -> None:
    assert AddressPolicy().refusal("host", address, 80) is None


@pytest.mark.parametrize(
    ("entry", "host", "address", "port", "allowed"),
    [
        ("127.0.0.0/8", "localhost", "127.0.0.1", 9000, True),
        ("127.0.0.0/8", "localhost", "::1", 9000, False),
        ("127.0.0.1", "x", "127.0.0.1", 1, True),
        ("127.0.0.1", "x", "127.0.0.2", 1, False),
        ("127.0.0.1:9000", "x", "127.0.0.1", 9000, True),
        ("127.0.0.1:9000", "x", "127.0.0.1", 9001, False),
        ("10.0.0.0/8:443", "x", "10.1.2.3", 443, True),
        ("10.0.0.0/8:443", "x", "10.1.2.3", 80, False),
        ("[::1]:9000", "x", "::1", 9000, True),
        ("::1", "x", "::1", 9000, True),
        ("services", "services", "10.0.0.9", 80, True),
        ("services", "SERVICES", "10.0.0.9", 80, True),
        ("services", "services.evil.example", "10.0.0.9", 80, False),
        ("services:9000", "services", "10.0.0.9", 9000, True),
        ("services:9000", "services", "10.0.0.9", 80, False),
        ("services", "services", "169.254.169.254", 80, False),
        ("127.0.0.1", "x", "::ffff:127.0.0.1", 80, True),
    ],
)
def test_allowance_covers_exactly_what_it_says(
    entry: str, host: str, address: str, port: int, allowed: bool
) -> None:
    policy = AddressPolicy((parse_allowance(entry),))
    assert (policy.refusal(host, address, port) is None) is allowed


@pytest.mark.parametrize(
    "text", ["", ":80", "host:", "host:0", "host:70000", "host:http", "10.0.0.0/33", "a b", "-/8"]
)
def test_unreadable_allowance_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"port|give a network"):
        parse_allowance(text)


def test_own_port_on_loopback_needs_an_entry_with_the_port() -> None:
    wide = AddressPolicy((parse_allowance("127.0.0.0/8"),), frozenset({8079}))
    exact = AddressPolicy(
        (parse_allowance("127.0.0.0/8"), parse_allowance("localhost:8079")), frozenset({8079})
    )
    assert "belongs to this product" in str(wide.refusal("localhost", "127.0.0.1", 8079))
    assert wide.refusal("localhost", "127.0.0.1", 8078) is None
    assert exact.refusal("localhost", "127.0.0.1", 8079) is None


def _resolver(*addresses: str):
    async def resolve(host: str, port: int) -> list[str]:
        return list(addresses)

    return resolve


@pytest.mark.parametrize("answers", [("127.0.0.1",), ("169.254.169.254", "::ffff:10.0.0.1"), ()])
async def test_name_that_resolves_to_forbidden_addresses_is_refused_before_connecting(
    answers: tuple[str, ...],
) -> None:
    backend = GuardedBackend(AddressPolicy(), resolver=_resolver(*answers))
    with pytest.raises(AddressRefused, match="allowed_networks"):
        await backend.connect_tcp("innocent.example", 80, timeout=1)


async def test_name_that_does_not_resolve_is_a_connection_error() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(httpcore.ConnectError, match="cannot be resolved"):
        await GuardedBackend(AddressPolicy(), resolver=resolve).connect_tcp("nowhere.invalid", 80, timeout=1)


async def test_unix_sockets_are_refused() -> None:
    with pytest.raises(AddressRefused):
        await GuardedBackend(AddressPolicy()).connect_unix_socket("/run/docker.sock")
