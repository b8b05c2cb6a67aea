-- KEYS: tasks of an owner, their expiry. ARGV: now, margin, member, latest.
return extend(KEYS[1], KEYS[2], time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4])
