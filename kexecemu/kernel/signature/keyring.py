"""The keys that a kernel trusts, those that it does not trust any more, and how it finds one.

Follows certs/system_keyring.c, certs/blacklist.c and find_asymmetric_key(). A kernel lets keys into its secondary
keyring only if one that it trusts has signed them; here a keyring holds whatever it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from errno import EINVAL, EKEYREJECTED, ENOKEY

from kexecemu.errors import KexecError
from kexecemu.formats.x509 import Certificate
from kexecemu.shown import shown

__all__ = ["Blacklist", "Key", "Keyring", "SystemKeyrings"]


@shown()
@dataclass(frozen=True)
class Key:
    """A key in a keyring: an X.509 certificate's."""

    certificate: Certificate

    @property
    def ids(self) -> tuple[bytes, bytes | None]:
        """The names by which it is looked up: serial number and issuer, and the subjectKeyIdentifier."""
        return self.certificate.id, self.certificate.skid


@shown()
@dataclass(frozen=True)
class Keyring:
    """Keys in the order in which they were loaded, then those of the keyrings that are linked to it."""

    name: str
    keys: tuple[Key, ...] = ()
    links: tuple[Keyring, ...] = ()

    @classmethod
    def of(cls, name: str, certificates: Iterable[Certificate], *links: Keyring) -> Keyring:
        """A keyring with the keys of these certificates."""
        return cls(name, tuple(Key(certificate) for certificate in certificates), links)

    def __iter__(self) -> Iterator[Key]:
        yield from self.keys
        for link in self.links:
            yield from link

    def find_asymmetric_key(self, id_0: bytes | None, id_1: bytes | None = None) -> Key:
        """find_asymmetric_key(): the first key that has the first of the given names as one of its own.

        With both names given, the second must be the found key's subjectKeyIdentifier. Raises KexecError: ENOKEY
        there is none, EKEYREJECTED the second name differs, EINVAL a name of no bytes. At least one name must be given.
        """
        step = "find_asymmetric_key"
        wanted = id_0 if id_0 is not None else id_1
        if wanted is None:
            raise ValueError("a key is looked up by a name")
        if not wanted:
            raise KexecError(
                EINVAL, "asymmetric_key_hex_to_key_id", "a key is looked up by a name of no bytes"
            )
        key = next((key for key in self if wanted in key.ids), None)
        if key is None:
            raise KexecError(ENOKEY, step, f"no key {wanted.hex()} in {self.name}")
        if id_0 is not None and id_1 is not None and key.certificate.skid != id_1:
            raise KexecError(
                EKEYREJECTED, step, f"the key {wanted.hex()} in {self.name} has another identifier"
            )
        return key


@shown()
@dataclass(frozen=True)
class Blacklist:
    """What is trusted no more: certificates by the digest of their signed part, and keys.

    tbs_digests are what CONFIG_SYSTEM_BLACKLIST_HASH_LIST or dbx list as "tbs:", revoked is the keyring of
    CONFIG_SYSTEM_REVOCATION_LIST, None without it.
    """

    tbs_digests: Set[bytes] = frozenset()
    revoked: Keyring | None = None


@shown()
@dataclass(frozen=True)
class SystemKeyrings:
    """All that signatures on system data are held against.

    secondary is None without CONFIG_SECONDARY_TRUSTED_KEYRING, platform without CONFIG_INTEGRITY_PLATFORM_KEYRING
    or without the firmware's db to fill it.
    """

    builtin: Keyring = field(default_factory=lambda: Keyring(".builtin_trusted_keys"))
    secondary: Keyring | None = None
    platform: Keyring | None = None
    blacklist: Blacklist = field(default_factory=Blacklist)

    @property
    def trusted(self) -> Keyring:
        """VERIFY_USE_SECONDARY_KEYRING: the secondary keyring, to which the built-in one is linked, or that alone."""
        if self.secondary is None:
            return self.builtin
        return Keyring(self.secondary.name, self.secondary.keys, (*self.secondary.links, self.builtin))
