"""Which device a GPU id means, and under which key everybody on this host locks it.

NVML's index order and CUDA's differ, and both hang on the environment; a UUID does not change. So an id is resolved to
a UUID where NVML is there. Where it is not, the name itself is the key: over-exclusion between hosts, never under.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from aiogpulock.errors import InvalidGpuError
from aiogpulock.gpu.aliases import Aliases
from aiogpulock.gpu.records import GpuDevice

Mode: TypeAlias = Literal["auto", "uuid", "logical"]

_INDEX = re.compile(r"0|[1-9]\d{0,5}")
_CUDA = re.compile(r"cuda:(0|[1-9]\d{0,5})")
_UUID_LIKE = re.compile(r"(?:GPU|MIG)-[0-9a-f-]+", re.IGNORECASE)
_FULL_UUID = re.compile(r"(?:GPU|MIG)-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Place(msgspec.Struct, frozen=True):
    """What an id means on this host, before it is asked under which key it is locked. All None: a free name."""

    uuid: str | None = None
    index: int | None = None
    name: str | None = None
    """The model, as NVML tells it."""
    remote: bool = False
    """NVML is here and does not know this UUID: the device of another host."""


class Identity(msgspec.Struct, frozen=True):
    """The key that an id is locked under, and the device behind it."""

    lock_id: str
    """A UUID, an index ("logical": without NVML, or by the first writer's word), or a free name."""
    place: Place


async def resolve(
    gpu_id: str,
    *,
    mode: Mode,
    devices: Sequence[GpuDevice] | None,
    visible: str | None,
    aliases: Aliases,
) -> Identity:
    """Find the device and agree with the others on this host on its key.

    `devices`: from NVML, None without it. `visible`: the text of CUDA_VISIBLE_DEVICES, None if it is not set.
    Raises `InvalidGpuError` where the id means no device, two devices, a GPU in MIG mode, or where this process and
    another one of this host would lock the same device under different keys.
    """
    place = locate(gpu_id, devices, visible, await aliases.uuids() if _needs_known_uuids(gpu_id, devices) else ())
    if place.uuid is None and place.index is None:
        return Identity(gpu_id, place)
    if place.index is not None:
        named_by_uuid = _UUID_LIKE.fullmatch(gpu_id) is not None
        return Identity(await _by_index(place.index, place.uuid, mode, aliases, named_by_uuid=named_by_uuid), place)
    return Identity(await _by_uuid(place.uuid or gpu_id, mode, aliases), place)


async def _by_index(index: int, uuid: str | None, mode: Mode, aliases: Aliases, *, named_by_uuid: bool) -> str:
    wanted = uuid if uuid and mode != "logical" else "logical"
    if mode == "uuid" and uuid is None:
        fixed = await aliases.look(index)
    else:
        fixed = await aliases.fix(index, wanted)
    if fixed is None:
        raise InvalidGpuError(
            f"identity 'uuid': without NVML the UUID of GPU {index} is not known here. Lock it by its UUID, "
            "make the driver visible to this process, or use identity 'auto'"
        )
    if fixed == "logical" and mode == "uuid":
        raise _disagreement(index, "its index (logical)", "identity 'uuid'")
    if fixed != "logical" and mode == "logical":
        raise _disagreement(index, f"UUID {fixed}", "identity 'logical'")
    if fixed != "logical" and uuid is not None and fixed != uuid:
        if named_by_uuid:  # a container that was given a part of the GPUs numbers them anew; a UUID says it all
            return await _by_uuid(uuid, mode, aliases)
        raise _disagreement(index, f"UUID {fixed}", f"NVML here, which says {uuid}: the order has changed, or differs")
    lock_id = str(index) if fixed == "logical" else fixed
    if uuid is not None:
        await _agree_on_uuid(uuid, lock_id, aliases)
    return lock_id


async def _by_uuid(uuid: str, mode: Mode, aliases: Aliases) -> str:
    """A UUID whose index is not known here: a MIG device, another host's GPU, or a process without NVML."""
    lock_id = await aliases.fix_uuid(uuid, uuid)
    if lock_id != uuid and mode == "uuid":
        raise InvalidGpuError(
            f"{uuid} is locked as GPU {lock_id!r} (logical) by other programs on this host, and identity 'uuid' "
            "would lock it by its UUID: they would not exclude each other. Use identity 'auto'"
        )
    return lock_id


async def _agree_on_uuid(uuid: str, lock_id: str, aliases: Aliases) -> None:
    fixed = await aliases.fix_uuid(uuid, lock_id)
    if fixed != lock_id:
        raise InvalidGpuError(
            f"GPU {uuid} is locked as {fixed!r} by a program on this host that named its UUID without NVML, and as "
            f"{lock_id!r} by others: they would not exclude each other. Name the GPU in one way, or give all NVML"
        )


def _disagreement(index: int, theirs: str, ours: str) -> InvalidGpuError:
    return InvalidGpuError(
        f"GPU {index} of this host is locked by {theirs} since the first program asked for it after this boot, which "
        f"disagrees with {ours}: they would not exclude each other. Set the same gpu_lock.identity everywhere on this "
        "host, or name the GPU by its UUID"
    )


# what an id means


def means_a_device(gpu_id: str) -> bool:
    """Whether NVML may have something to say about the id; anything else is a free name."""
    return any(pattern.fullmatch(gpu_id) for pattern in (_INDEX, _CUDA, _UUID_LIKE))


def _needs_known_uuids(gpu_id: str, devices: Sequence[GpuDevice] | None) -> bool:
    return devices is None and bool(_UUID_LIKE.fullmatch(gpu_id)) and not _FULL_UUID.fullmatch(_canonical(gpu_id))


def locate(
    gpu_id: str, devices: Sequence[GpuDevice] | None, visible: str | None, known_uuids: Sequence[str] = ()
) -> Place:
    """What an id means here. `known_uuids`: what other processes of this host said, for a prefix without NVML."""
    if _INDEX.fullmatch(gpu_id):
        return _at_index(int(gpu_id), devices)
    cuda = _CUDA.fullmatch(gpu_id)
    if cuda:
        return _visible_place(int(cuda[1]), devices, visible)
    if _UUID_LIKE.fullmatch(gpu_id):
        return _at_uuid(_canonical(gpu_id), devices, known_uuids)
    return Place()


def _canonical(uuid: str) -> str:
    return uuid[:4].upper() + uuid[4:].lower()


def _place(device: GpuDevice) -> Place:
    if device.mig_enabled:
        raise InvalidGpuError(
            f"GPU {device.index} ({device.uuid}) is in MIG mode: its MIG devices overlap with it. "
            "Lock one of them by its MIG UUID (nvidia-smi -L lists them)"
        )
    return Place(device.uuid or None, device.index, device.name or None)


def _at_index(index: int, devices: Sequence[GpuDevice] | None) -> Place:
    if devices is None:
        return Place(index=index)
    for device in devices:
        if device.index == index:
            return _place(device)
    known = [str(device.index) for device in devices if device.index is not None]
    raise InvalidGpuError(f"there is no GPU {index} on this host: NVML has {_listed(known) or 'none'}")


def _at_uuid(prefix: str, devices: Sequence[GpuDevice] | None, known_uuids: Sequence[str]) -> Place:
    fits = [device for device in devices or () if device.uuid.startswith(prefix)]
    if len(fits) == 1:
        return _place(fits[0])
    if _FULL_UUID.fullmatch(prefix):
        return Place(prefix, remote=devices is not None)
    uuids = [device.uuid for device in fits] or [uuid for uuid in known_uuids if uuid.startswith(prefix)]
    if len(uuids) > 1:
        raise InvalidGpuError(f"{prefix!r} fits {_listed(uuids)}: write more of the UUID")
    if not uuids:
        why = "no GPU of this host has such a UUID" if devices is not None else "without NVML write the whole UUID"
        raise InvalidGpuError(f"{prefix!r} is the beginning of no known UUID: {why}")
    return Place(uuids[0])


def _visible_place(number: int, devices: Sequence[GpuDevice] | None, visible: str | None) -> Place:
    if visible is None:
        return _at_index(number, devices)
    places = visible_places(visible, devices)
    if number >= len(places):
        raise InvalidGpuError(
            f"'cuda:{number}' does not exist: CUDA_VISIBLE_DEVICES={visible!r} shows {len(places)} device(s) here"
        )
    return places[number]


def visible_places(visible: str, devices: Sequence[GpuDevice] | None) -> list[Place]:
    """What CUDA_VISIBLE_DEVICES shows, as CUDA reads it: an invalid entry cuts the list there."""
    places: list[Place] = []
    for entry in (part.strip() for part in visible.split(",")):
        if not (_INDEX.fullmatch(entry) or _UUID_LIKE.fullmatch(entry)):
            break
        if not _exists(entry, devices):
            break
        place = locate(entry, devices, None)
        if place in places:
            return []  # CUDA shows no device at all then
        places.append(place)
    return places


def _exists(entry: str, devices: Sequence[GpuDevice] | None) -> bool:
    if devices is None:
        return bool(_INDEX.fullmatch(entry) or _FULL_UUID.fullmatch(_canonical(entry)))
    if _INDEX.fullmatch(entry):
        return any(device.index == int(entry) for device in devices)
    return len([device for device in devices if device.uuid.startswith(_canonical(entry))]) == 1


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
