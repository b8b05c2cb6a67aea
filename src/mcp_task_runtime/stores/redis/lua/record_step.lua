-- ARGV 5-: statuses of tasks that have not ended; `+` and worker; attempt; key; value.
if not is_in(ARGV[5]) then return {'refused', head.status} end
if is_fenced(ARGV[6], ARGV[7]) then return {'lost'} end
local known = redis.call('HGET', KEYS[8], ARGV[8])
if known then return {'ok', known} end
local number = redis.call('HLEN', KEYS[8])
redis.call('HSET', KEYS[8], ARGV[8], number .. ' ' .. ARGV[9])
if number == 0 then fit(8, 8) end
return {'ok', number .. ' ' .. ARGV[9]}
