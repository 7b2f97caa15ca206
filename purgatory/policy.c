// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PURGATORY_POLICY: what to do when something is wrong, as the loader chose.
 */
#include "options.h"

#define PSCI_SYSTEM_OFF		0x84000008UL
#define PSCI_SYSTEM_RESET	0x84000009UL

__kexec_purgatory u64 purgatory_policy;
__kexec_purgatory u64 purgatory_psci_conduit;

static int repaired(void)
{
#ifdef PURGATORY_REPAIR
	return !!(purgatory_verdict.flags & PURGATORY_FLAG_REPAIRED);
#else
	return 0;
#endif
}

unsigned long refuse(u32 damaged)
{
	switch (purgatory_policy) {
	case PURGATORY_POLICY_RESET:
		report_line("resetting");
		psci_call(PSCI_SYSTEM_RESET, purgatory_psci_conduit);
		break;			/* it came back */
	case PURGATORY_POLICY_OFF:
		report_line("switching off");
		psci_call(PSCI_SYSTEM_OFF, purgatory_psci_conduit);
		break;
	case PURGATORY_POLICY_RETURN:
		report_line("returning");
		return RETURN_TO_CALLER;
	case PURGATORY_POLICY_BOOT_ANYWAY:
		if (damaged & PURGATORY_SELF)
			break;		/* nor do we know where to */
		report_line("booting anyway");
		return START_KERNEL;
	case PURGATORY_POLICY_REPAIR:
		if (!repaired())
			break;
		report_line("repaired from the copy");
		return START_KERNEL;
	}
	report_stop(NULL);
	return STOP;
}
