-- KEYS: tasks of an owner, their expiry. ARGV: now, margin, members.
redis.call('ZREM', KEYS[1], unpack(ARGV, 3))
redis.call('ZREM', KEYS[2], unpack(ARGV, 3))
fit_index(KEYS[1], KEYS[2], time(ARGV[1]), ARGV[2])
