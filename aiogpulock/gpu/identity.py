"""Which device a GPU id means, and under which key everybody on this host locks it.

NVML's index order and CUDA's differ, and both hang on the environment; a UUID does not change. So an id is resolved to
a UUID where NVML is there. Where it is not, the name itself is the key: over-exclusion between hosts, and within one a
refusal where two names may be one device.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from aiogpulock.errors import InvalidGpuError
from aiogpulock.gpu.aliases import ONE_NAME, Aliases
from aiogpulock.gpu.records import GpuDevice

Mode: TypeAlias = Literal["auto", "uuid", "logical"]

_INDEX = re.compile(r"0|[1-9]\d{0,5}")
_CUDA = re.compile(r"cuda:(0|[1-9]\d{0,5})")
_UUID_LIKE = re.compile(r"(?:GPU|MIG)-[0-9a-f]{4}[0-9a-f-]*", re.IGNORECASE)
"""Fewer digits may be meant as an index."""
_MEANT = re.compile(
    r"\d+|(?i:cuda(:.*)?|gpu:\d*)|(GPU|MIG)-.*|(?i:GPU|MIG)-([0-9a-fA-F-]*|\w{8}(-\w{4}){3}-\w{12})", re.ASCII
)
"""Whoever writes this means a device, rightly spelled or not."""
_FULL_UUID = re.compile(r"(?:GPU|MIG)-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


_REPAIR = "See what nvidia-smi says of it, and reset or replace it; NVML is asked again within a minute"


class Place(msgspec.Struct, frozen=True):
    """What an id means on this host, before it is asked under which key it is locked. All None: a free name."""

    uuid: str | None = None
    index: int | None = None
    name: str | None = None
    """The model, as NVML tells it."""
    remote: bool = False
    """NVML is here and does not know this UUID: the device of another host."""
    is_mig: bool = False
    """NVML says so: no index means it."""


class Identity(msgspec.Struct, frozen=True):
    """The key that an id is locked under, and the device behind it."""

    lock_id: str
    """A UUID, an index ("logical": without NVML, or by the first writer's word), or a free name."""
    place: Place


class Visible(NamedTuple):
    """What CUDA is shown, and how it counts."""

    devices: str | None = None
    """The text of CUDA_VISIBLE_DEVICES; None: it is not set."""
    by_bus: bool = False
    """CUDA counts along the PCI bus, as NVML does, and not from the fastest."""

    @classmethod
    def here(cls) -> Visible:
        """As this process's environment says."""
        return cls(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID")


async def resolve(
    gpu_id: str,
    *,
    mode: Mode,
    devices: Sequence[GpuDevice] | None,
    visible: Visible,
    aliases: Aliases,
    whole: bool = True,
) -> Identity:
    """Find the device and agree with the others on this host on its key.

    `devices`: from NVML, None without it; `whole`: they are all of the host's, so that their indices are its own.
    Raises `InvalidGpuError` where the id means no device, two devices, a GPU in MIG mode, or where this process and
    another one of this host would lock the same device under different keys.
    """
    place = locate(gpu_id, devices, visible, await aliases.uuids() if _needs_known_uuids(gpu_id, devices) else ())
    by_uuid = _UUID_LIKE.fullmatch(gpu_id) is not None
    match place:
        case Place(uuid=None, index=None):
            lock_id = gpu_id
        case Place(uuid=str(uuid), index=int(index)) if whole or (mode == "logical" and not by_uuid):
            lock_id = await _by_both(index, uuid, mode, aliases, named_by_uuid=by_uuid)
        case Place(uuid=str(uuid)):  # one that nobody here sees may be an index, too
            lock_id = await _by_uuid(uuid, mode, aliases, linked=place.is_mig or (whole and devices is not None))
        case Place(index=int(index)):
            lock_id = await _by_index(index, mode, aliases)
            if lock_id != str(index):
                place = msgspec.structs.replace(place, uuid=lock_id)
    return Identity(lock_id, place)


async def _by_both(index: int, uuid: str, mode: Mode, aliases: Aliases, *, named_by_uuid: bool) -> str:
    """Index and UUID are known to be one device: whoever knows only one of them learns the other from here."""
    known = await aliases.said(uuid)
    if known not in (None, uuid, str(index)):
        raise _two_keys(uuid, str(known), str(index))
    logical = known == str(index) if known is not None else mode == "logical"
    wanted = "logical" if logical else uuid
    _check_mode(index, wanted, mode)
    fixed = await aliases.said(str(index)) or wanted
    _check_mode(index, fixed, mode)
    if fixed not in ("logical", uuid):
        if named_by_uuid:  # GPUs were numbered anew; a UUID says it all
            return await _by_uuid(uuid, mode, aliases, linked=True)
        raise _disagreement(index, f"UUID {fixed}", f"NVML here, which says {uuid}: the order has changed, or differs")
    lock_id = str(index) if fixed == "logical" else uuid
    if known not in (None, lock_id):
        raise _two_keys(uuid, str(known), lock_id)
    if await aliases.fix_both({str(index): fixed, uuid: lock_id}):
        return lock_id
    return await _by_both(index, uuid, mode, aliases, named_by_uuid=named_by_uuid)  # somebody has just said otherwise


async def _by_index(index: int, mode: Mode, aliases: Aliases) -> str:
    """An index without NVML."""
    fixed = await aliases.look(str(index))
    if fixed is None and mode == "uuid":
        raise InvalidGpuError(
            f"identity 'uuid': without NVML the UUID of GPU {index} is not known here. Lock it by its UUID, "
            "make the driver visible to this process, or use identity 'auto'"
        )
    if fixed is None:
        await _agree_on_names("index", f"GPU {index}", aliases)
        fixed = await aliases.fix(str(index), "logical")
    _check_mode(index, fixed, mode)
    return str(index) if fixed == "logical" else fixed


def _check_mode(index: int, fixed: str, mode: Mode) -> None:
    if fixed == "logical" and mode == "uuid":
        raise _disagreement(index, "its index (logical)", "identity 'uuid'")
    if fixed != "logical" and mode == "logical":
        raise _disagreement(index, f"UUID {fixed}", "identity 'logical'")


async def _by_uuid(uuid: str, mode: Mode, aliases: Aliases, *, linked: bool) -> str:
    """A UUID whose index on this host is not known. `linked`: it has none: a MIG device, another host's GPU."""
    if not linked and await aliases.look(uuid) is None:
        await _agree_on_names("UUID", uuid, aliases)
    lock_id = await aliases.fix(uuid, uuid)
    if lock_id != uuid and mode == "uuid":
        raise InvalidGpuError(
            f"{uuid} is locked as GPU {lock_id!r} (logical) by other programs on this host, and identity 'uuid' "
            "would lock it by its UUID: they would not exclude each other. Use identity 'auto'"
        )
    return lock_id


async def _agree_on_names(name: Literal["index", "UUID"], gpu: str, aliases: Aliases) -> None:
    """Programs that know one name of a GPU alone all use the same kind of name on this host; the first decides.

    That GPU 0 and GPU-5f2a… are one device, nobody could tell them.
    """
    agreed = await aliases.fix(ONE_NAME, name)
    if agreed != name:
        raise InvalidGpuError(
            f"{gpu}: programs on this host have locked GPUs by {agreed} alone, without knowing more of them, and here "
            f"the {name} alone is known (no NVML, or a container that sees some of the host's GPUs): if both mean "
            "one device, they would not exclude each other. Name GPUs by UUID in all of them, or let one program "
            "with NVML that sees all GPUs lock this one first"
        )


def _two_keys(uuid: str, theirs: str, ours: str) -> InvalidGpuError:
    return InvalidGpuError(
        f"GPU {uuid} is locked as {theirs!r} by other programs on this host, and would be locked as {ours!r} here: "
        "they would not exclude each other. Name the GPU in one way, or give all of them NVML"
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


def check_spelling(gpu_id: str) -> None:
    """Raise `InvalidGpuError` for what is meant as a device and means none: as a free name it would exclude nobody."""
    if _MEANT.fullmatch(gpu_id) and not means_a_device(gpu_id):
        raise InvalidGpuError(
            f"gpu_id {gpu_id!r} looks like a device, and is none: write an index as 0, a CUDA device as 'cuda:0', or a "
            "UUID as nvidia-smi -L prints it ('GPU-' or 'MIG-', then hexadecimal digits, at least 4). A free name "
            "must look otherwise, for example 'node-a'"
        )


def _needs_known_uuids(gpu_id: str, devices: Sequence[GpuDevice] | None) -> bool:
    return devices is None and bool(_UUID_LIKE.fullmatch(gpu_id)) and not _FULL_UUID.fullmatch(_canonical(gpu_id))


def locate(
    gpu_id: str, devices: Sequence[GpuDevice] | None, visible: Visible, known_uuids: Sequence[str] = ()
) -> Place:
    """What an id means here. `known_uuids`: what other processes of this host said, for a prefix without NVML."""
    if _INDEX.fullmatch(gpu_id):
        return _at_index(int(gpu_id), devices)
    cuda = _CUDA.fullmatch(gpu_id)
    if cuda:
        return _visible_place(int(cuda[1]), devices, visible)
    if _UUID_LIKE.fullmatch(gpu_id):
        return _at_uuid(_canonical(gpu_id), devices, known_uuids)
    check_spelling(gpu_id)
    return Place()


def _canonical(uuid: str) -> str:
    return uuid[:4].upper() + uuid[4:].lower()


def _place(device: GpuDevice, devices: Sequence[GpuDevice]) -> Place:
    if device.fault:
        what = "MIG mode" if device.uuid else "UUID"
        raise InvalidGpuError(
            f"GPU {device.index} cannot be locked while its {what} cannot be read: others may hold it, or a part of "
            f"it, by another name. {device.fault}. {_REPAIR}"
        )
    if device.mig_enabled:
        parts = [other.uuid for other in devices if other.parent == device.uuid and other.uuid]
        here = f"here these are {_listed(parts)}" if parts else "there are none here"
        raise InvalidGpuError(
            f"GPU {device.index} ({device.uuid}) is in MIG mode: its MIG devices overlap with it. "
            f"Lock one of them by its MIG UUID (nvidia-smi -L lists them): {here}"
        )
    return Place(device.uuid or None, device.index, device.name or None, is_mig=device.parent is not None)


def _at_index(index: int, devices: Sequence[GpuDevice] | None) -> Place:
    if devices is None:
        return Place(index=index)
    for device in devices:
        if device.index == index:
            return _place(device, devices)
    known = [str(device.index) for device in devices if device.index is not None]
    raise InvalidGpuError(f"there is no GPU {index} on this host: NVML has {_listed(known) or 'none'}")


def _at_uuid(prefix: str, devices: Sequence[GpuDevice] | None, known_uuids: Sequence[str]) -> Place:
    fits = [device for device in devices or () if device.uuid.startswith(prefix)]
    if len(fits) == 1:
        return _place(fits[0], devices or ())
    sick = next((device for device in devices or () if not device.uuid), None)
    if sick is not None and not fits:
        raise InvalidGpuError(
            f"NVML lists no {prefix!r} here, but it may be a device whose UUID cannot be read, which others may hold "
            f"by its index. {sick.fault}. {_REPAIR}"
        )
    if _FULL_UUID.fullmatch(prefix):
        return Place(prefix, remote=devices is not None)
    uuids = [device.uuid for device in fits] or [uuid for uuid in known_uuids if uuid.startswith(prefix)]
    if len(uuids) > 1:
        raise InvalidGpuError(f"{prefix!r} fits {_listed(uuids)}: write more of the UUID")
    if not uuids:
        why = "no GPU of this host has such a UUID" if devices is not None else "without NVML write the whole UUID"
        raise InvalidGpuError(f"{prefix!r} is the beginning of no known UUID: {why}")
    return Place(uuids[0])


def _visible_place(number: int, devices: Sequence[GpuDevice] | None, visible: Visible) -> Place:
    if visible.devices is None:
        _check_order(number, devices, visible)
        return _at_index(number, devices)
    places = visible_places(visible.devices, devices)
    if number >= len(places):
        raise InvalidGpuError(
            f"'cuda:{number}' does not exist: CUDA_VISIBLE_DEVICES={visible.devices!r} shows {len(places)} device(s) "
            "here"
        )
    if _INDEX.fullmatch(visible.devices.split(",")[number].strip()):
        _check_order(number, devices, visible)
    place = places[number]
    if isinstance(place, InvalidGpuError):
        raise place
    return place


def _check_order(number: int, devices: Sequence[GpuDevice] | None, visible: Visible) -> None:
    """CUDA counts GPUs of one model as NVML does; of several models, only if it is told to."""
    models = sorted({device.name for device in devices or () if device.index is not None and device.name})
    if len(models) > 1 and not visible.by_bus:
        raise InvalidGpuError(
            f"which GPU 'cuda:{number}' is cannot be told here: this host has {_listed(models)}, and CUDA counts from "
            "the fastest, NVML along the bus. Set CUDA_DEVICE_ORDER=PCI_BUS_ID for this program, or name the GPU by "
            "its UUID (nvidia-smi -L lists them)"
        )


def visible_places(visible: str, devices: Sequence[GpuDevice] | None) -> list[Place | InvalidGpuError]:
    """What CUDA_VISIBLE_DEVICES shows, as CUDA reads it: an invalid entry cuts the list there.

    What is shown and cannot be locked, such as a GPU that cannot be read, is there as the reason: it hides no other.
    """
    places: list[Place | InvalidGpuError] = []
    for entry in (part.strip() for part in visible.split(",")):
        if not (_INDEX.fullmatch(entry) or _UUID_LIKE.fullmatch(entry)):
            break
        if not _exists(entry, devices):
            break
        try:
            place: Place | InvalidGpuError = locate(entry, devices, Visible())
        except InvalidGpuError as error:
            place = error
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
