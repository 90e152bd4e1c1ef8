"""VP-CMJL: visual proxies and text prototypes."""
