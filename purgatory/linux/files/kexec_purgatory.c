// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The purgatory of kexec_file_load(): place it behind the other segments, and
 * tell it what it has to know. Its code is in arch/arm64/purgatory.
 */

#define pr_fmt(fmt) "kexec_file: " fmt

#include <linux/elf.h>
#include <linux/err.h>
#include <linux/kexec.h>
#include <linux/types.h>

#include <asm/insn.h>

/*
 * How far an instruction reaches that has its target as an immediate. With
 * -mcmodel=tiny there are no others: everything is within 1 MiB, and nothing
 * goes by pages.
 */
static const struct purgatory_reloc {
	u32 type;
	enum aarch64_insn_imm_type imm;
	u8 bits;
	u8 shift;		/* low bits that are not encoded */
} purgatory_relocs[] = {
	{ R_AARCH64_LD_PREL_LO19, AARCH64_INSN_IMM_19, 19, 2 },
	{ R_AARCH64_ADR_PREL_LO21, AARCH64_INSN_IMM_ADR, 21, 0 },
	{ R_AARCH64_TSTBR14, AARCH64_INSN_IMM_14, 14, 2 },
	{ R_AARCH64_CONDBR19, AARCH64_INSN_IMM_19, 19, 2 },
	{ R_AARCH64_JUMP26, AARCH64_INSN_IMM_26, 26, 2 },
	{ R_AARCH64_CALL26, AARCH64_INSN_IMM_26, 26, 2 },
};

static int apply_reloc(u32 type, __le32 *insn, s64 distance)
{
	const struct purgatory_reloc *reloc = purgatory_relocs;
	const struct purgatory_reloc *end = reloc + ARRAY_SIZE(purgatory_relocs);
	s64 limit, imm;

	while (reloc < end && reloc->type != type)
		reloc++;
	if (reloc == end) {
		pr_err("purgatory: relocation of type %u\n", type);
		return -ENOEXEC;
	}

	limit = 1LL << (reloc->bits - 1);
	imm = distance >> reloc->shift;
	if (imm < -limit || imm >= limit || imm << reloc->shift != distance) {
		pr_err("purgatory: relocation of type %u does not reach %lld bytes\n",
		       type, distance);
		return -ENOEXEC;
	}

	*insn = cpu_to_le32(aarch64_insn_encode_immediate(reloc->imm, le32_to_cpu(*insn), imm));
	return 0;
}

/**
 * arch_kexec_apply_relocations_add - relocate one section of the purgatory
 * @pi:		The purgatory: its headers, and the buffer that is loaded.
 * @section:	The section that the relocations are for.
 * @relsec:	The section that holds them.
 * @symtab:	The symbols that they name.
 *
 * Return: 0, or -ENOEXEC for a relocation that there should not be.
 */
int arch_kexec_apply_relocations_add(struct purgatory_info *pi, Elf_Shdr *section,
				     const Elf_Shdr *relsec, const Elf_Shdr *symtab)
{
	const Elf64_Rela *rela = (const void *)pi->ehdr + relsec->sh_offset;
	const Elf64_Rela *end = rela + relsec->sh_size / sizeof(*rela);
	const Elf64_Sym *syms = (const void *)pi->ehdr + symtab->sh_offset;

	for (; rela < end; rela++) {
		const Elf64_Sym *sym = syms + ELF64_R_SYM(rela->r_info);
		u64 place = section->sh_addr + rela->r_offset;
		u64 target;
		int ret;

		if (sym->st_shndx == SHN_UNDEF || sym->st_shndx >= pi->ehdr->e_shnum) {
			pr_err("purgatory: relocation against section %u\n", sym->st_shndx);
			return -ENOEXEC;
		}
		target = pi->sechdrs[sym->st_shndx].sh_addr + sym->st_value + rela->r_addend;
		ret = apply_reloc(ELF64_R_TYPE(rela->r_info),
				  pi->purgatory_buf + section->sh_offset + rela->r_offset,
				  target - place);
		if (ret)
			return ret;
	}
	return 0;
}
