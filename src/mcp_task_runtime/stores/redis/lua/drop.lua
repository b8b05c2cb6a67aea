-- ARGV 5-: worker; 1 for a lease that lapses, 0 for none; worker as in an event.
if head.worker ~= ARGV[5] then return {'no'} end
note('released', run_of(ARGV[7], head.attempt), now)
if ARGV[6] == '1' then
    local lapses = digits(math.min(tonumber(head.lease_expires_at), tonumber(now)))
    redis.call('HSET', KEYS[1], 'lease_expires_at', lapses)
    relapse(lapses)
    return {'ok', lapses}
end
redis.call('HDEL', KEYS[1], 'worker', 'lease_expires_at', 'attempt')
unlease()
return {'ok'}
