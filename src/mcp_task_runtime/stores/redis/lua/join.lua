-- Decide which task a call has: the one that is known for it, unless that is the one which cannot be joined any more.
-- KEYS: tasks of calls, calls by the time until which they are known.
-- ARGV: now (empty for the server's time); call; task that cannot be joined, or empty; task of this caller;
-- milliseconds that it is known; calls to forget at the most that are known no more.
local now, call = time(ARGV[1]), ARGV[2]
for _, past in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[6])) do
    redis.call('HDEL', KEYS[1], past)
    redis.call('ZREM', KEYS[2], past)
end
local known, until_ = redis.call('HGET', KEYS[1], call), redis.call('ZSCORE', KEYS[2], call)
if known and known ~= ARGV[3] and tonumber(until_ or 0) > tonumber(now) then return known end
redis.call('HSET', KEYS[1], call, ARGV[4])
redis.call('ZADD', KEYS[2], digits(now + 1000 * ARGV[5]), call)
return ARGV[4]
