"""Which device an id means, and that everybody on a host locks it under one key."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiogpulock.errors import InvalidGpuError
from aiogpulock.gpu.aliases import Aliases
from aiogpulock.gpu.identity import Mode, locate, resolve, visible_places
from aiogpulock.gpu.records import GpuDevice
from aiogpulock.redis_client import RedisClient
from tests.nvml_sim import uuid

A, B, MIG = uuid(0), uuid(1), uuid(16, "MIG")
TWO = (GpuDevice(A, 0, "H100"), GpuDevice(B, 1, "H100"))
WITH_MIG = (GpuDevice(A, 0, "H100", mig_enabled=True), GpuDevice(MIG, None, "H100 MIG", parent=A), TWO[1])
NO_NVML = None


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[RedisClient]:
    client = RedisClient(redis_url, where="test", connections=4, timeout=5, name="test")
    yield client
    await client.close()


@pytest.fixture
def aliases(client: RedisClient) -> Aliases:
    return Aliases(client.execute_many, "gpu_lock", "boot")


async def key(
    aliases: Aliases, gpu_id: str, devices: Any = TWO, mode: Mode = "auto", visible: str | None = None
) -> str:
    return (await resolve(gpu_id, mode=mode, devices=devices, visible=visible, aliases=aliases)).lock_id


@pytest.mark.parametrize(
    ("gpu_id", "visible", "expected"),
    [
        ("0", None, A),
        ("0", "1,0", A),
        ("cuda:0", None, A),
        ("cuda:0", "1,0", B),
        ("cuda:1", "1,0", A),
        ("cuda:0", B, B),
        ("cuda:0", " GPU-a0000001 , 0", B),
        (A, None, A),
        (A.upper(), None, A),
        ("GPU-a0000001", None, B),
        ("my-box", None, "my-box"),
        ("00", None, "00"),
    ],
)
async def test_ids_mean_devices(aliases: Aliases, gpu_id: str, visible: str | None, expected: str) -> None:
    assert await key(aliases, gpu_id, visible=visible) == expected


async def test_the_identity_tells_uuid_index_and_model(aliases: Aliases) -> None:
    found = await resolve("cuda:0", mode="auto", devices=TWO, visible="1", aliases=aliases)
    assert (found.place.uuid, found.place.index, found.place.name) == (B, 1, "H100")


@pytest.mark.parametrize(
    ("visible", "count"),
    [("", 0), ("-1", 0), ("0,-1,1", 1), ("0,7,1", 1), ("1,nonsense,0", 1), ("GPU-", 0), ("0,0", 0), (f"{A},{B}", 2)],
)
def test_an_invalid_entry_cuts_the_visible_list(visible: str, count: int) -> None:
    assert len(visible_places(visible, TWO)) == count


@pytest.mark.parametrize(
    ("gpu_id", "visible", "text"),
    [
        ("7", None, "there is no GPU 7 on this host: NVML has 0 and 1"),
        ("GPU-a000000", None, f"fits {A} and {B}: write more"),
        ("GPU-ffff", None, "no GPU of this host has such a UUID"),
        ("cuda:1", "0", "CUDA_VISIBLE_DEVICES='0' shows 1 device"),
        ("cuda:0", "", "CUDA_VISIBLE_DEVICES='' shows 0 device"),
    ],
)
def test_an_id_that_means_no_device_says_which_there_are(gpu_id: str, visible: str | None, text: str) -> None:
    with pytest.raises(InvalidGpuError, match=text.replace("(", r"\(")):
        locate(gpu_id, TWO, visible)


async def test_a_gpu_in_mig_mode_is_refused_and_its_devices_are_not(aliases: Aliases) -> None:
    for gpu_id in ("0", A, "cuda:0"):
        with pytest.raises(InvalidGpuError, match="is in MIG mode"):
            await key(aliases, gpu_id, WITH_MIG)
    assert await key(aliases, MIG, WITH_MIG) == MIG


async def test_the_uuid_of_another_host_is_locked_and_known_as_remote(aliases: Aliases) -> None:
    other = uuid(9)
    found = await resolve(other, mode="auto", devices=TWO, visible=None, aliases=aliases)
    assert (found.lock_id, found.place.remote) == (other, True)


async def test_a_beginning_of_a_uuid_is_completed_without_nvml_from_what_others_named(aliases: Aliases) -> None:
    with pytest.raises(InvalidGpuError, match="write the whole UUID"):
        await key(aliases, "GPU-a0000001", NO_NVML)
    await key(aliases, "1")
    assert await key(aliases, "GPU-a0000001", NO_NVML) == B


# one key per device and host

WAYS: list[tuple[str, Any]] = [("0", TWO), ("0", NO_NVML), (A, TWO), ("cuda:0", TWO), ("cuda:0", NO_NVML), (A, NO_NVML)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(len(WAYS)), 3)))
async def test_processes_with_and_without_nvml_meet_at_one_key_or_are_refused(
    aliases: Aliases, order: tuple[int, ...]
) -> None:
    keys, refusals = set(), []
    unrelated = {WAYS[number] for number in order if WAYS[number][1] is NO_NVML}
    for number in order:
        try:
            keys.add(await key(aliases, *WAYS[number]))
        except InvalidGpuError as error:
            refusals.append(str(error))
    assert all("would not exclude each other" in text for text in refusals)
    # That an index and a UUID are one device, nobody knows while no process with NVML has named it.
    assert len(keys) <= 1 or len(unrelated) >= 2


async def test_all_at_once_meet_at_one_key_in_every_round(client: RedisClient) -> None:
    for number in range(100):
        aliases = Aliases(client.execute_many, "gpu_lock", f"boot {number}")
        ways = [WAYS[turn % 2] for turn in range(4)]
        keys = await asyncio.gather(*(key(aliases, *way) for way in ways))
        assert len(set(keys)) == 1


async def test_another_boot_is_another_host(client: RedisClient, aliases: Aliases) -> None:
    assert await key(aliases, "0", NO_NVML) == "0"
    assert await key(Aliases(client.execute_many, "gpu_lock", "other"), "0") == A


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (("0", TWO, "auto"), ("0", TWO, "logical"), "identity 'logical'"),
        (("0", TWO, "logical"), ("0", TWO, "uuid"), "identity 'uuid'"),
        (("0", NO_NVML, "auto"), ("0", TWO, "uuid"), "identity 'uuid'"),
        (("0", NO_NVML, "auto"), (A, TWO, "uuid"), "identity 'uuid'"),
        (("0", TWO, "auto"), ("0", (GpuDevice(B, 0, "H100"),), "auto"), "the order has changed"),
        (("0", TWO, "logical"), (A, NO_NVML, "uuid"), "would lock it by its UUID"),
        ((A, NO_NVML, "auto"), ("0", TWO, "logical"), "named its UUID without NVML"),
    ],
)
async def test_processes_that_would_disagree_are_refused(
    aliases: Aliases, first: tuple[str, Any, Mode], second: tuple[str, Any, Mode], text: str
) -> None:
    await key(aliases, *first)
    with pytest.raises(InvalidGpuError, match=text):
        await key(aliases, *second)


async def test_a_container_that_numbers_its_gpus_anew_meets_the_host_by_uuid(aliases: Aliases) -> None:
    assert await key(aliases, "0") == A
    its_own = (GpuDevice(B, 0, "H100"),)
    assert await key(aliases, B, its_own) == B
    assert await key(aliases, "GPU-a0000001", its_own) == B
    assert await key(aliases, "1") == B
    with pytest.raises(InvalidGpuError, match="or name the GPU by its UUID"):
        await key(aliases, "0", its_own)


async def test_identity_uuid_without_nvml_needs_somebody_who_knows(aliases: Aliases) -> None:
    with pytest.raises(InvalidGpuError, match="without NVML the UUID of GPU 0 is not known"):
        await key(aliases, "0", NO_NVML, "uuid")
    await key(aliases, "0")
    assert await key(aliases, "0", NO_NVML, "uuid") == A


async def test_aliases_expire(client: RedisClient, aliases: Aliases) -> None:
    await key(aliases, "0")
    assert await client.execute("TTL", "{gpu_lock}:alias:boot") > 0
