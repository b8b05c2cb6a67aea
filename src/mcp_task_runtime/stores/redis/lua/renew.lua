-- ARGV 5-: worker; milliseconds.
if head.worker ~= ARGV[5] then return {'no'} end
local lapses = digits(now + 1000 * ARGV[6])
redis.call('HSET', KEYS[1], 'lease_expires_at', lapses)
relapse(ARGV[5], lapses)
if ARGV[5] == '' then wait(lapses) end
return {'ok', lapses}
