-- KEYS: tasks of an owner, their expiry. ARGV: now, margin, member, latest.
return index(KEYS[1], KEYS[2], unpack(ARGV))
