"""Must a kernel image be signed to be loaded? What Linux 6.1 on arm64 decides, and with which errno it refuses.

kexec_file_load() asks here once the image is read and probed (kimage_validate_signature()). Without anything that
enforces it, a failed verification is no more than a line in the log: that is how arm64 ships, since only
CONFIG_KEXEC_SIG_FORCE, a secure boot policy of IMA or the lockdown make it count. kexec_load(), which has no file to
look at, is refused by the latter two.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EACCES, EKEYREJECTED, EPERM

from kexecemu.errors import KexecError
from kexecemu.kernel.signature.keyring import SystemKeyrings
from kexecemu.kernel.signature.public_key import CryptoModules
from kexecemu.kernel.signature.signature import kexec_kernel_verify_pe_sig
from kexecemu.shown import shown

__all__ = ["KexecSignaturePolicy", "Lockdown"]

_LOCKED = "Lockdown: kexec: kexec of unsigned images is restricted; see man kernel_lockdown.7"
_NO_DESCRIPTOR = (
    "ima: impossible to appraise a kernel image without a file descriptor; try using kexec_file_load syscall."
)


class Lockdown(enum.Enum):
    """The kernel lockdown, as /sys/kernel/security/lockdown names it; both levels restrict kexec."""

    NONE = "none"
    INTEGRITY = "integrity"
    CONFIDENTIALITY = "confidentiality"


@shown()
@dataclass(frozen=True)
class KexecSignaturePolicy:
    """What of a kernel and its machine decides over signatures.

    sig               CONFIG_KEXEC_SIG: verify at all
    image_verify_sig  CONFIG_KEXEC_IMAGE_VERIFY_SIG: the Image loader can verify; without it, verification fails
    force             CONFIG_KEXEC_SIG_FORCE: a failed verification refuses the image
    secure_boot       the firmware booted the kernel in secure boot mode
    ima_arch_policy   CONFIG_IMA_ARCH_POLICY: in secure boot mode IMA sets the same as force
    lockdown          refuses images that fail verification, unless IMA appraises them
    ima_appraise      IMA enforces signatures on kexec kernel images (a rule for KEXEC_KERNEL_CHECK)
    keyrings, crypto  what signatures are held against
    """

    sig: bool = False
    image_verify_sig: bool = True
    force: bool = False
    secure_boot: bool = False
    ima_arch_policy: bool = False
    lockdown: Lockdown = Lockdown.NONE
    ima_appraise: bool = False
    keyrings: SystemKeyrings = field(default_factory=SystemKeyrings)
    crypto: CryptoModules = field(default_factory=CryptoModules)

    @property
    def sig_enforce(self) -> bool:
        """sig_enforce: set by the configuration, or by arch_get_ima_policy() through set_kexec_sig_enforced()."""
        return self.sig and (self.force or (self.secure_boot and self.ima_arch_policy))

    def check(self, image: bytes, log: Callable[[str], None]) -> None:
        """kimage_validate_signature(): return if the image may be loaded.

        log gets the kernel's lines: of what failed, and of what was let through nevertheless. Raises KexecError:
        the verification's own errno where signatures are enforced, EPERM under lockdown.
        """
        if not self.sig:
            return
        try:
            if not self.image_verify_sig:
                reason = "the kernel loader does not support signature verification"
                raise KexecError(EKEYREJECTED, "kexec_image_verify_sig", reason)
            kexec_kernel_verify_pe_sig(image, self.keyrings, self.crypto)
        except KexecError as error:
            if self.sig_enforce:
                log(f"kexec_file: Enforced kernel signature verification failed (-{error.errno}).")
                raise
            # Where IMA is certain to appraise the image, lockdown leaves it to IMA.
            if self.lockdown is not Lockdown.NONE and not self.ima_appraise:
                log(_LOCKED)
                reason = f"kernel is locked down, and the signature is not good: {error}"
                raise KexecError(EPERM, "kimage_validate_signature", reason) from error
            # pr_debug(): in a real kernel's log only with dynamic debugging.
            log(f"kexec_file: kernel signature verification failed (-{error.errno}).")

    def check_kexec_load(self, log: Callable[[str], None]) -> None:
        """kexec_load_check(): whether kexec_load(), whose image cannot be verified, is allowed at all.

        Raises KexecError: EACCES secure boot with CONFIG_KEXEC_SIG, or IMA appraises kexec images; EPERM lockdown.
        """
        if self.ima_appraise or (self.sig and self.secure_boot):
            log(_NO_DESCRIPTOR)
            raise KexecError(EACCES, "ima_load_data", "the image cannot be appraised without a file")
        if self.lockdown is not Lockdown.NONE:
            log(_LOCKED)
            raise KexecError(EPERM, "security_locked_down", "kexec of unsigned images is restricted")
