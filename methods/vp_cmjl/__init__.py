"""VP-CMJL: visual proxies beside text prototypes."""
