"""Keys of dm-crypt for the capture kernel, which opens the disk for the dump with them: kernel/crash_dump_dm_crypt.c.

User space says in configfs which keys of its keyring they are; here it says how many, and what they are is made up.
"""

import struct

from kexecemu.arguments import integer
from kexecemu.errors import InputError
from kexecemu.kernel.base.era import Era, where_so

__all__ = ["KEYS_MAX", "check_dm_crypt_keys", "keys_header"]

KEYS_MAX = 129
"""As many as configfs takes; the capture kernel, which counts better, takes back one less (KEY_NUM_MAX)."""

_TOTAL = struct.Struct("<I")
_KEY = struct.Struct("<I128s256s")  # struct dm_crypt_key: key_size, key_desc, data
_KEY_SIZE = 64  # of aes-xts-plain64 with 256 bits


def keys_header(count: int) -> bytes:
    """build_keys_header(): struct keys_header with so many keys, which plainly are none."""
    keys = b""
    for number in range(count):
        data = f"key {number} of kexecemu: not a secret; ".encode() * 3
        keys += _KEY.pack(_KEY_SIZE, f"kexecemu:{number}".encode(), data[:_KEY_SIZE])
    return _TOTAL.pack(count) + keys


def check_dm_crypt_keys(count: int, era: Era) -> int:
    """The number of keys; InputError for one that configfs does not take, or any where the era takes none."""
    integer(count, "dm_crypt_keys")
    if not 0 <= count <= KEYS_MAX:
        raise InputError(f"dm_crypt_keys: 0 to {KEYS_MAX} keys, not {count}")
    if count and not era.rules.dm_crypt_keys:
        raise InputError(f"dm_crypt_keys: arm64 takes keys {where_so('dm_crypt_keys')}, not {era.value}")
    return count
