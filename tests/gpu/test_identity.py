"""Which device an id means, and that everybody on a host locks it under one key."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from aiogpulock import gpu_lock
from aiogpulock.errors import InvalidGpuError
from aiogpulock.gpu.aliases import Aliases
from aiogpulock.gpu.identity import Mode, Place, Visible, locate, resolve, visible_places
from aiogpulock.gpu.numbering import numbered_as_the_host
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
    aliases: Aliases,
    gpu_id: str,
    devices: Any = TWO,
    mode: Mode = "auto",
    visible: Visible | str | None = None,
    *,
    whole: bool = True,
) -> str:
    seen = visible if isinstance(visible, Visible) else Visible(visible)
    return (await resolve(gpu_id, mode=mode, devices=devices, visible=seen, aliases=aliases, whole=whole)).lock_id


MISTYPED = ("GPU-5f2g", "GPU-", "MIG-xyz", "cuda:01", "CUDA:0", "cuda:-1", "cuda", "gpu:0", "1000000", "00")
SHORT = ("GPU-0", "gpu-0", "GPU-a", "gpu-123", "mig-0", "gpu-0-1")
"""Meant as an index, it may be."""
O_FOR_0 = "gpu-a0000000-0000-4000-8000-00000000000O"


@pytest.mark.parametrize("gpu_id", [*MISTYPED, *SHORT, O_FOR_0])
@pytest.mark.parametrize("devices", [TWO, NO_NVML])
def test_a_mistyped_device_is_no_free_name(gpu_id: str, devices: Any) -> None:
    with pytest.raises(InvalidGpuError, match=f"'{gpu_id}' looks like a device, and is none: write an index as 0"):
        locate(gpu_id, devices, Visible())
    with pytest.raises(InvalidGpuError, match="looks like a device"):
        gpu_lock(gpu_id)  # before any connection


@pytest.mark.parametrize("gpu_id", ["card0", "gpu0", "gpu-node-a", "gpu:render", "mig-pool", "cuda-0", "0x", "node:0"])
def test_other_names_are_free(gpu_id: str) -> None:
    assert locate(gpu_id, TWO, Visible()) == Place()
    gpu_lock(gpu_id)


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
    ],
)
async def test_ids_mean_devices(aliases: Aliases, gpu_id: str, visible: str | None, expected: str) -> None:
    assert await key(aliases, gpu_id, visible=visible) == expected


async def test_who_knows_the_index_alone_learns_the_uuid_from_the_others(aliases: Aliases) -> None:
    await key(aliases, "1")
    found = await resolve("1", mode="auto", devices=NO_NVML, visible=Visible(), aliases=aliases)
    assert (found.lock_id, found.place) == (B, Place(B, 1))


async def test_the_identity_tells_uuid_index_and_model(aliases: Aliases) -> None:
    found = await resolve("cuda:0", mode="auto", devices=TWO, visible=Visible("1"), aliases=aliases)
    assert (found.place.uuid, found.place.index, found.place.name) == (B, 1, "H100")


@pytest.mark.parametrize(("cuda", "visible"), [("cuda:1", "0,1"), ("cuda:0", "1,0")])
async def test_a_sick_gpu_hides_no_other_from_cuda(cuda: str, visible: str, aliases: Aliases) -> None:
    sick = (GpuDevice("", 0, "", fault="NVML GPU 0: unknown error (code 999)"), TWO[1])
    found = await resolve(cuda, mode="auto", devices=sick, visible=Visible(visible), aliases=aliases)
    assert found.lock_id == B
    with pytest.raises(InvalidGpuError, match="cannot be locked"):
        await resolve("cuda:0", mode="auto", devices=sick, visible=Visible("0,1"), aliases=aliases)


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
        locate(gpu_id, TWO, Visible(visible))


UNLIKE = (GpuDevice(A, 0, "T4"), GpuDevice(B, 1, "H100"))


@pytest.mark.parametrize(
    ("gpu_id", "visible", "expected"),
    [
        ("cuda:0", Visible(), None),
        ("cuda:1", Visible("0,1"), None),
        ("cuda:0", Visible(by_bus=True), A),
        ("cuda:0", Visible("1,0", by_bus=True), B),
        ("cuda:0", Visible(f"{B},0"), B),
        ("cuda:1", Visible(f"{B},0"), None),
        ("0", Visible(), A),
    ],
)
async def test_of_several_models_cuda_names_mean_something_only_along_the_bus(
    aliases: Aliases, gpu_id: str, visible: Visible, expected: str | None
) -> None:
    if expected is not None:
        assert await key(aliases, gpu_id, UNLIKE, visible=visible) == expected
        return
    with pytest.raises(
        InvalidGpuError, match=f"which GPU '{gpu_id}' is .* H100 and T4.* Set CUDA_DEVICE_ORDER=PCI_BUS"
    ):
        await key(aliases, gpu_id, UNLIKE, visible=visible)


def test_the_environment_says_what_cuda_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert Visible.here() == Visible(None, by_bus=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert Visible.here() == Visible("1", by_bus=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert Visible.here() == Visible("1", by_bus=True)


async def test_a_gpu_in_mig_mode_is_refused_and_its_devices_are_not(aliases: Aliases) -> None:
    for gpu_id in ("0", A, "cuda:0"):
        with pytest.raises(InvalidGpuError, match="is in MIG mode"):
            await key(aliases, gpu_id, WITH_MIG)
    assert await key(aliases, MIG, WITH_MIG) == MIG


@pytest.mark.parametrize("order", [1, -1])
async def test_a_gpu_that_cannot_be_read_gets_no_second_key_beside_a_program_without_nvml(
    aliases: Aliases, order: int
) -> None:
    sick = (GpuDevice("", 0, "", fault="NVML GPU 0: unknown error (code 999)"), TWO[1])
    keys, refusals = set[str](), list[str]()
    for gpu_id, devices in ((A, sick), ("0", sick), ("0", NO_NVML))[::order]:
        try:
            keys.add(await key(aliases, gpu_id, devices))
        except InvalidGpuError as error:
            refusals.append(str(error))
    assert keys == {"0"}
    assert ["UUID cannot be read" in text for text in refusals] == [True, True]


async def test_the_uuid_of_another_host_is_locked_and_known_as_remote(aliases: Aliases) -> None:
    other = uuid(9)
    found = await resolve(other, mode="auto", devices=TWO, visible=Visible(), aliases=aliases)
    assert (found.lock_id, found.place.remote) == (other, True)


async def test_a_beginning_of_a_uuid_is_completed_without_nvml_from_what_others_named(aliases: Aliases) -> None:
    with pytest.raises(InvalidGpuError, match="write the whole UUID"):
        await key(aliases, "GPU-a0000001", NO_NVML)
    await key(aliases, "1")
    assert await key(aliases, "GPU-a0000001", NO_NVML) == B


# one key per device and host

POD_A, POD_B = (GpuDevice(A, 0, "H100"),), (GpuDevice(B, 0, "H100"),)
WAYS: list[tuple[str, Any, bool, str]] = [
    ("0", TWO, True, A),
    ("0", NO_NVML, True, A),
    ("cuda:0", NO_NVML, True, A),
    (A, TWO, True, A),
    (A, NO_NVML, True, A),
    ("0", POD_A, False, A),
    ("1", TWO, True, B),
    ("1", NO_NVML, True, B),
    ("0", POD_B, False, B),
    (B, POD_B, False, B),
]
"""Id, what NVML lists, whether that is the whole host, and the device that is really meant."""


async def test_programs_that_see_all_some_or_no_gpus_meet_at_one_key_per_device_or_are_refused(
    client: RedisClient,
) -> None:
    refusals: list[str] = []
    for number, order in enumerate(itertools.permutations(WAYS, 3)):
        aliases = Aliases(client.execute_many, "gpu_lock", f"boot {number}")
        keys: dict[str, str] = {}
        for gpu_id, devices, whole, device in order:
            try:
                found = await key(aliases, gpu_id, devices, whole=whole)
            except InvalidGpuError as error:
                refusals.append(str(error))
                continue
            assert keys.setdefault(device, found) == found, order
        assert len(set(keys.values())) == len(keys), order
    assert all("would not exclude each other" in text for text in refusals)
    assert len(refusals) < number, "most fit together"


async def test_all_at_once_meet_at_one_key_in_every_round(client: RedisClient) -> None:
    for number in range(100):
        aliases = Aliases(client.execute_many, "gpu_lock", f"boot {number}")
        ways = [WAYS[turn % 2][:2] for turn in range(4)]
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
        ((A, NO_NVML, "auto"), ("0", TWO, "logical"), "identity 'logical'"),
    ],
)
async def test_processes_that_would_disagree_are_refused(
    aliases: Aliases, first: tuple[str, Any, Mode], second: tuple[str, Any, Mode], text: str
) -> None:
    await key(aliases, *first)
    with pytest.raises(InvalidGpuError, match=text):
        await key(aliases, *second)


async def test_containers_with_a_gpu_each_lock_what_they_have_and_number_nothing_for_the_host(
    client: RedisClient, aliases: Aliases
) -> None:
    for pod, device in ((POD_A, A), (POD_B, B)):
        for gpu_id in ("0", "cuda:0", device):
            assert await key(aliases, gpu_id, pod, whole=False) == device
    assert not await client.execute("HEXISTS", "{gpu_lock}:alias:boot", "0")
    assert await key(aliases, "1") == B
    assert await key(aliases, "1", NO_NVML) == B, "the host has said which that is"
    with pytest.raises(InvalidGpuError, match=r"GPU 0: programs on this host have locked GPUs by UUID alone"):
        await key(aliases, "0", NO_NVML)
    assert await key(aliases, "0") == A
    assert await key(aliases, "0", NO_NVML) == A


async def test_a_container_beside_a_program_that_knows_numbers_alone_is_refused_until_somebody_knows_both(
    aliases: Aliases,
) -> None:
    assert await key(aliases, "1", NO_NVML) == "1"
    for gpu_id, devices in (("0", POD_B), (B, POD_B), (B, NO_NVML)):
        with pytest.raises(InvalidGpuError, match=rf"{B}: programs on this host have locked GPUs by index alone"):
            await key(aliases, gpu_id, devices, whole=False)
    assert await key(aliases, "1") == "1"
    assert await key(aliases, "0", POD_B, whole=False) == "1"


async def test_identity_logical_in_a_container_locks_the_number_that_it_has(aliases: Aliases) -> None:
    for pod in (POD_A, POD_B):
        assert await key(aliases, "0", pod, "logical", whole=False) == "0"
    with pytest.raises(InvalidGpuError, match="is locked as '0' by other programs"):
        await key(aliases, "1")
    assert await key(aliases, "0") == "0"


async def test_a_container_that_comes_first_by_an_instant_leaves_no_program_with_another_key(
    client: RedisClient, aliases: Aliases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between what a program reads and what it writes, a container fixes the UUID."""
    container, blind = (Aliases(client.execute_many, "gpu_lock", "boot") for _ in range(2))
    fix_both = aliases.fix_both

    async def late(names: Mapping[str, str]) -> bool:
        await key(container, A, POD_A, whole=False)
        return await fix_both(names)

    monkeypatch.setattr(aliases, "fix_both", late)
    with pytest.raises(InvalidGpuError, match="would not exclude each other"):
        await key(aliases, "0", mode="logical")
    with pytest.raises(InvalidGpuError, match="would not exclude each other"):
        await key(blind, "0", NO_NVML)


async def test_a_refused_program_has_numbered_nothing(client: RedisClient, aliases: Aliases) -> None:
    assert await key(aliases, B, NO_NVML) == B
    with pytest.raises(InvalidGpuError, match="identity 'logical'"):
        await key(aliases, "0", POD_B, "logical", whole=False)
    assert await key(aliases, "0") == A


async def test_a_mig_device_and_another_hosts_gpu_are_no_number_of_this_host(aliases: Aliases) -> None:
    assert await key(aliases, "1", NO_NVML) == "1"
    assert await key(aliases, MIG, WITH_MIG) == MIG
    assert await key(aliases, uuid(9)) == uuid(9)


async def test_a_mig_device_in_a_container_is_no_number_either(aliases: Aliases) -> None:
    """It is listed with the GPU that it is part of; the host has more."""
    one = WITH_MIG[:2]
    assert await key(aliases, "1", NO_NVML) == "1", "programs that know numbers alone go on"
    for gpu_id in (MIG, MIG[:12], "cuda:0"):
        assert await key(aliases, gpu_id, one, visible=MIG, whole=False) == MIG
    with pytest.raises(InvalidGpuError, match=f"GPU 0 .* is in MIG mode: .* by its MIG UUID .*: here these are {MIG}"):
        await key(aliases, "0", one, whole=False)


async def test_a_mig_device_that_nvml_does_not_list_may_be_what_others_number(aliases: Aliases) -> None:
    for devices in (NO_NVML, POD_B):
        assert await key(aliases, "1", NO_NVML) == "1"
        with pytest.raises(
            InvalidGpuError, match=f"{MIG}: programs on this host have locked GPUs by index alone.* Name"
        ):
            await key(aliases, MIG, devices, whole=False)


@pytest.mark.parametrize(
    ("entries", "whole"),
    [
        (["0000:17:00.0", "0000:65:00.0", "bind", "module", "new_id"], True),
        (["0000:17:00.0", "0000:65:00.0", "00010000:ca:00.0"], False),
        ([], True),
        (None, True),
    ],
)
def test_sysfs_tells_whether_gpus_are_hidden(tmp_path: Path, entries: list[str] | None, whole: bool) -> None:
    bound = tmp_path / "nvidia"
    for entry in entries or []:
        (bound / entry).mkdir(parents=True)
    if entries == []:
        bound.mkdir()
    assert numbered_as_the_host((*TWO, GpuDevice(MIG, None, "MIG", parent=A)), bound) == whole


async def test_identity_uuid_without_nvml_needs_somebody_who_knows(aliases: Aliases) -> None:
    with pytest.raises(InvalidGpuError, match="without NVML the UUID of GPU 0 is not known"):
        await key(aliases, "0", NO_NVML, "uuid")
    await key(aliases, "0")
    assert await key(aliases, "0", NO_NVML, "uuid") == A


async def test_aliases_expire(client: RedisClient, aliases: Aliases) -> None:
    await key(aliases, "0")
    assert await client.execute("TTL", "{gpu_lock}:alias:boot") > 0
