"""Exit codes: the run failed, wrong usage, bad configuration (sysexits.h); signals add 128."""

FAILED = 1
USAGE = 2
BAD_CONFIGURATION = 78
SIGNAL = 128
