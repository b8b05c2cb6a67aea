-- A waiter leaves a mark, which is deleted with everything else when the mailbox is cleared: a waiter that missed the
-- notification sees that its mark is gone (law L3). ARGV 5-: milliseconds; mark; whether the wait begins; statuses of
-- tasks that have not ended.
local length = redis.call('LLEN', KEYS[2])
if length > 0 then return done(length) end
if head.status and not is_in(ARGV[8]) then return done(-1) end
if ARGV[7] == '1' then
    redis.call('HSET', KEYS[6], ARGV[6], '')
    fit(6, 6, ARGV[5])
elseif redis.call('HEXISTS', KEYS[6], ARGV[6]) == 0 then
    return done(-1)
end
return done(0)
