-- ARGV 5-: worker; milliseconds; worker as in an event.
if head.op == op then return {'ok', all()} end
if not head.worker then return {'no'} end
local worker, attempt = ARGV[5], head.attempt
local has_lapsed = tonumber(head.lease_expires_at) <= tonumber(now)
if not has_lapsed and (head.worker ~= '' or worker == '') then
    if redis.call('HGET', KEYS[1], 'claim') == op then return {'ok', all()} end -- changed since this call was sent
    return {'no'}
end
if worker ~= '' then attempt = digits(attempt + 1) end
note(worker ~= '' and 'claimed' or 'released', run_of(ARGV[7], attempt))
local lapses = digits(now + 1000 * ARGV[6])
redis.call('HSET', KEYS[1], 'op', op, 'claim', op, 'revision', digits(head.revision + 1),
    'last_updated_at', later(now, head.last_updated_at),
    'worker', worker, 'lease_expires_at', lapses, 'attempt', attempt)
relapse(lapses)
tell('t')
if worker == '' then
    wait(lapses)
    ring()
else
    unwait()
end
return {'ok', all()}
