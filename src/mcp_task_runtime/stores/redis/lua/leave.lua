-- Move a task that a worker has claimed, from what waits to the leases that are held, unless it was put back meanwhile.
-- KEYS: index of leases; the tool's waiting tasks. ARGV: tag, the time at which its lease lapses, the one at which the
-- lease before it would have.
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
if score and tonumber(score) ~= tonumber(ARGV[3]) then return 0 end
redis.call('ZADD', KEYS[1], 'XX', ARGV[2], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
