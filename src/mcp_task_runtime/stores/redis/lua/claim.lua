-- ARGV 5-: worker; milliseconds; worker as in an event; and for one that takes a waiting task alone: the tags of its
-- tools with a space around each, and 1 if it takes sealed tasks.
if head.op == op then return {'ok', all()} end
if not head.worker then return {'no'} end
local worker, attempt = ARGV[5], head.attempt
local is_due = tonumber(head.lease_expires_at) <= tonumber(now) or head.worker == '' and worker ~= ''
if is_due and ARGV[8] then
    is_due = head.worker == '' and string.find(ARGV[8], ' ' .. tag_of_tool(tool()) .. ' ', 1, true)
        and (ARGV[9] == '1' or not is_sealed(redis.call('HGET', KEYS[1], 'request')))
end
if not is_due then
    if head.claim == op then return {'ok', all()} end -- changed since this call was sent
    return {'no'}
end
if worker ~= '' then attempt = digits(attempt + 1) end
note(worker ~= '' and 'claimed' or 'released', run_of(ARGV[7], attempt))
local lapses = digits(now + 1000 * ARGV[6])
redis.call('HSET', KEYS[1], 'op', op, 'claim', op, 'revision', digits(head.revision + 1),
    'last_updated_at', later(now, head.last_updated_at),
    'worker', worker, 'lease_expires_at', lapses, 'attempt', attempt)
relapse(worker, lapses)
tell('t')
if worker == '' then
    wait(lapses)
    ring()
else
    unwait()
end
return {'ok', all(), head.lease_expires_at}
