-- Move a task that a worker has claimed, from what waits to the leases that are held.
-- KEYS: index of leases; the tool's waiting tasks. ARGV: tag, the time at which its lease lapses.
redis.call('ZADD', KEYS[1], 'XX', ARGV[2], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
