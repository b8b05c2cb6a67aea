-- KEYS: index of leases. ARGV: tag, time at which the lease lapses, milliseconds to keep the entry.
return lease(KEYS[1], unpack(ARGV))
