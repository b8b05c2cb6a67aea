-- ARGV 5-: worker; 1 for a lease that lapses, 0 for none; worker as in an event.
if head.worker ~= ARGV[5] then return {'no'} end
note('released', run_of(ARGV[7], head.attempt), now)
if ARGV[6] == '1' then
    if tonumber(head.lease_expires_at) <= tonumber(now) then return {'ok', head.lease_expires_at} end
    local lapses = digits(now)
    redis.call('HSET', KEYS[1], 'lease_expires_at', lapses, 'handovers', digits((head.handovers or 0) + 1))
    relapse(ARGV[5], lapses)
    if ARGV[5] == '' then wait(lapses) end
    return {'ok', lapses}
end
redis.call('HDEL', KEYS[1], 'worker', 'lease_expires_at', 'attempt', 'handovers')
unwait()
unlease()
return {'ok'}
